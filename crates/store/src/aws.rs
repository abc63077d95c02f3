//! What object_store does not know of AWS: profiles, SSO and processes that give credentials, and buckets themselves (making
//! one, looking at its settings). Only with the cargo feature `aws`; data never goes this way.
//!
//! The SDK brings no HTTP client and no TLS of its own: its requests go through reqwest ([`http`]), as object_store's do.

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_types::error::display::DisplayErrorContext;
use isobar_host::Host;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use crate::StoreError;
use crate::credentials::aws_builders_find;
use crate::url::StoreUrl;

mod http;
mod settings;

pub use settings::{Setting, Verdict, bucket_settings, make_bucket};

/// Where an endpoint that is not Amazon's is asked and nobody named a region.
const ANY_REGION: &str = "us-east-1";
/// Credentials are asked for anew so long before they end.
const RENEW_MS: i64 = 5 * 60_000;

/// The SDK's view of the environment, the profile files and the URL.
async fn sdk_config(host: &Host, url: &StoreUrl) -> Result<SdkConfig, StoreError> {
    let client = http::Client::new(host, url)?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(client.clone());
    let elsewhere = url.option("endpoint").map(|_| ANY_REGION.to_owned());
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // Without one of these the SDK asks profiles, then this machine's metadata service.
    let region = url.option("region").map(str::to_owned).or_else(|| set("AWS_REGION"));
    let region = region.or_else(|| set("AWS_DEFAULT_REGION")).or(elsewhere).map(Region::new);
    if let Some(region) = region.clone() {
        loader = loader.region(region);
    }
    if let Some(name) = url.option("profile") {
        loader = loader.profile_name(name);
        // The SDK's chain would take keys of the environment first; what the URL says is more explicit.
        let config = ProviderConfig::default().with_http_client(client).with_region(region);
        let named = ProfileFileCredentialsProvider::builder().configure(&config).profile_name(name).build();
        loader = loader.credentials_provider(named);
    }
    Ok(loader.load().await)
}

/// What a URL's store takes from the SDK.
pub(crate) struct Found {
    pub(crate) credentials: Arc<dyn CredentialProvider<Credential = AwsCredential>>,
    pub(crate) region: Option<String>,
}

/// `None`: object_store's builder finds the credentials by itself, or none are wanted.
pub(crate) async fn find(host: &Host, url: &StoreUrl) -> Result<Option<Found>, StoreError> {
    let by_itself = aws_builders_find(&|name| std::env::var(name).ok()).is_some();
    if url.flag("anonymous")? == Some(true) || (by_itself && url.option("profile").is_none()) {
        return Ok(None);
    }
    let config = sdk_config(host, url).await?;
    let region = config.region().map(|region| region.as_ref().to_owned());
    Ok(config.credentials_provider().map(|provider| {
        let credentials = SdkCredentials { host: HostClock(host.clone()), provider, known: Mutex::default() };
        Found { credentials: Arc::new(credentials), region }
    }))
}

struct HostClock(Host);

impl std::fmt::Debug for HostClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

#[derive(Debug, Clone)]
struct Known {
    credential: Arc<AwsCredential>,
    renew_at_ms: i64,
}

/// The SDK's chain as object_store asks it. One request for credentials at a time.
#[derive(Debug)]
struct SdkCredentials {
    host: HostClock,
    provider: SharedCredentialsProvider,
    known: Mutex<Option<Known>>,
}

#[async_trait]
impl CredentialProvider for SdkCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| self.host.0.now_ms() < known.renew_at_ms) {
            return Ok(Arc::clone(&known.credential));
        }
        let found = self.provider.provide_credentials().await.map_err(|error| {
            let why = DisplayErrorContext(&error).to_string();
            crate::cloud::http::no_credentials(&why);
            object_store::Error::Generic { store: "S3", source: why.into() }
        })?;
        let ends = found.expiry().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let renew_at_ms = ends.map_or(i64::MAX, |ends| {
            i64::try_from(ends.as_millis()).unwrap_or(i64::MAX).saturating_sub(RENEW_MS)
        });
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().filter(|token| !token.is_empty()).map(str::to_owned),
        });
        *known = Some(Known { credential: Arc::clone(&credential), renew_at_ms });
        Ok(credential)
    }
}
