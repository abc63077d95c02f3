//! From a URL to an object_store: options, credentials, TLS, proxy, connection pools.
//!
//! object_store's own retries are off: the bucket's decide (`bucket/retry.rs`), because only they know the budget and tell
//! what did not happen from what may have. Its own timeouts are off too but for the connect phase: the bucket's attempts
//! have deadlines.

use std::sync::{Arc, Once};
use std::time::Duration;

use isobar_host::Host;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::StoreError;
use crate::cause::chain_text;
use crate::url::{StoreKind, StoreUrl};

pub(crate) mod http;

use http::{Connector, Wire};

/// Longest time for TCP and TLS to stand.
const CONNECT: Duration = Duration::from_secs(5);
/// Stores close idle connections after 5 to 60 seconds; one that is used at that moment is lost.
const IDLE: Duration = Duration::from_secs(20);

/// A store of a cloud, and what its HTTP client sees.
pub(crate) struct Cloud {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) wire: Wire,
}

/// Builds the store that `url` names. Asks nothing of it yet.
pub(crate) async fn open(host: &Host, url: &StoreUrl) -> Result<Cloud, StoreError> {
    install_tls();
    let wire = Wire::new(host, url.option("proxy"));
    let connector = Connector::new(wire.clone());
    let client = client_options(host, url)?;
    let store: Arc<dyn ObjectStore> = match url.kind {
        StoreKind::S3 => {
            let builder = with_profiles(host, url, s3(host, url, client)?).await?;
            Arc::new(builder.with_http_connector(connector).build().map_err(wrong)?)
        }
        StoreKind::Gcs => Arc::new(gcs(url, client)?.with_http_connector(connector).build().map_err(wrong)?),
        StoreKind::Azure => {
            Arc::new(azure(url, client)?.with_http_connector(connector).build().map_err(wrong)?)
        }
        StoreKind::Directory => return Err(StoreError::Config("a directory is no cloud".to_owned())),
    };
    wire.built();
    Ok(Cloud { store, wire })
}

fn wrong(error: object_store::Error) -> StoreError {
    let text = chain_text(&error);
    let hint = if text.contains("Account must be specified") {
        "; give the storage account with account=NAME in the URL or AZURE_STORAGE_ACCOUNT_NAME"
    } else {
        ""
    };
    StoreError::Config(format!("store: {text}{hint}"))
}

/// rustls takes its cryptography from the process; ring is the one that object_store signs with too.
pub(crate) fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody else's choice is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

pub(crate) fn read_pem(host: &Host, path: &str) -> Result<Vec<u8>, StoreError> {
    host.read_file(std::path::Path::new(path))
        .map_err(|error| StoreError::Config(format!("store: cannot read {path}: {error}")))
}

fn client_options(host: &Host, url: &StoreUrl) -> Result<ClientOptions, StoreError> {
    let plain = url.option("endpoint").is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut options = ClientOptions::new()
        .with_allow_http(url.flag("allow_http")?.unwrap_or(plain))
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_pool_idle_timeout(IDLE);
    if let Some(path) = url.option("ca_file") {
        let pem = read_pem(host, path)?;
        let bundle = Certificate::from_pem_bundle(&pem).map_err(wrong)?;
        if bundle.is_empty() {
            return Err(StoreError::Config(format!("store: {path} holds no PEM certificate")));
        }
        for certificate in bundle {
            options = options.with_root_certificate(certificate);
        }
    }
    if let Some(proxy) = url.option("proxy") {
        options = options.with_proxy_url(proxy);
    }
    if let Some(path) = url.option("proxy_ca_file") {
        options = options.with_proxy_ca_certificate(String::from_utf8_lossy(&read_pem(host, path)?));
    }
    if let Some(excludes) = url.option("proxy_excludes") {
        options = options.with_proxy_excludes(excludes);
    }
    Ok(options)
}

/// Where object_store finds no credentials, the SDK's chain looks: profiles, SSO, and at last this machine's role.
#[cfg(feature = "aws")]
async fn with_profiles(
    host: &Host,
    url: &StoreUrl,
    builder: AmazonS3Builder,
) -> Result<AmazonS3Builder, StoreError> {
    let Some(found) = Box::pin(crate::aws::find(host, url)).await? else { return Ok(builder) };
    let builder = builder.with_credentials(found.credentials);
    Ok(match found.region {
        Some(region) => builder.with_region(region),
        None => builder,
    })
}

#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
async fn with_profiles(
    _: &Host,
    url: &StoreUrl,
    builder: AmazonS3Builder,
) -> Result<AmazonS3Builder, StoreError> {
    match url.option("profile") {
        None => Ok(builder),
        Some(name) => Err(StoreError::Config(format!(
            "store URL: profile={name}: this build reads no profiles (it lacks the feature aws). Run eval \"$(aws configure \
             export-credentials --profile {name} --format env)\" and leave the option out"
        ))),
    }
}

fn s3(host: &Host, url: &StoreUrl, client: ClientOptions) -> Result<AmazonS3Builder, StoreError> {
    use object_store::aws::AmazonS3ConfigKey as K;
    let mut builder =
        AmazonS3Builder::from_env().with_client_options(client).with_retry(no_retries()).with_url(&url.base);
    if let Some(endpoint) = url.option("endpoint") {
        // AWS_ENDPOINT_URL_S3 would win over it.
        builder = builder.with_config(K::S3Endpoint, endpoint).with_endpoint(endpoint);
    } else if let Some(endpoint) =
        builder.get_config_value(&K::S3Endpoint).or_else(|| builder.get_config_value(&K::Endpoint))
        && endpoint.starts_with("http://")
        && url.flag("allow_http")?.is_none()
    {
        builder = builder.with_allow_http(true);
    }
    for (name, key) in [
        ("region", K::Region),
        ("checksum", K::Checksum),
        ("kms_key_id", sse_key("aws_sse_kms_key_id")?),
        ("bucket_key", sse_key("aws_sse_bucket_key_enabled")?),
    ] {
        if let Some(value) = url.option(name) {
            builder = builder.with_config(key, value);
        }
    }
    for (name, key) in [
        ("unsigned_payload", K::UnsignedPayload),
        ("s3_express", K::S3Express),
        ("requester_pays", K::RequestPayer),
        ("imdsv1_fallback", K::ImdsV1Fallback),
        ("anonymous", K::SkipSignature),
    ] {
        if let Some(value) = url.flag(name)? {
            builder = builder.with_config(key, value.to_string());
        }
    }
    if let Some(path_style) = url.flag("path_style")? {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    // DELETE is what every S3 understands, and we delete one object at a time.
    builder = builder.with_disable_bulk_delete(!url.flag("bulk_delete")?.unwrap_or(false));
    encrypted(host, url, builder)
}

fn sse_key(name: &str) -> Result<AmazonS3ConfigKey, StoreError> {
    name.parse().map_err(wrong)
}

fn encrypted(host: &Host, url: &StoreUrl, builder: AmazonS3Builder) -> Result<AmazonS3Builder, StoreError> {
    let sse = match url.option("sse") {
        None => return Ok(builder),
        Some("s3") => "AES256",
        Some("kms") => "aws:kms",
        Some("dsse") => "aws:kms:dsse",
        Some("c") => {
            let path = url.option("sse_c_key_file").ok_or_else(|| {
                StoreError::Config(
                    "store URL: sse=c needs sse_c_key_file=PATH, 32 bytes in base64".to_owned(),
                )
            })?;
            let key = String::from_utf8_lossy(&read_pem(host, path)?).trim().to_owned();
            // As long as 32 bytes are.
            if key.len() != 44 || !key.ends_with('=') || key.ends_with("==") {
                return Err(StoreError::Config(format!(
                    "store URL: sse_c_key_file={path} does not hold 32 bytes in base64"
                )));
            }
            return Ok(builder.with_ssec_encryption(key));
        }
        Some(other) => {
            return Err(StoreError::Config(format!("store URL: sse={other}; it is one of s3, kms, dsse, c")));
        }
    };
    Ok(builder.with_config(sse_key("aws_server_side_encryption")?, sse))
}

fn gcs(url: &StoreUrl, client: ClientOptions) -> Result<GoogleCloudStorageBuilder, StoreError> {
    use object_store::gcp::GoogleConfigKey as K;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_client_options(client)
        .with_retry(no_retries())
        .with_url(&url.base);
    let keys: [(&str, GoogleConfigKey); 3] = [
        ("endpoint", K::BaseUrl),
        ("service_account", K::ServiceAccount),
        ("credentials_file", K::ApplicationCredentials),
    ];
    for (name, key) in keys {
        if let Some(value) = url.option(name) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(anonymous) = url.flag("anonymous")? {
        builder = builder.with_skip_signature(anonymous);
    }
    Ok(builder)
}

fn azure(url: &StoreUrl, client: ClientOptions) -> Result<MicrosoftAzureBuilder, StoreError> {
    use object_store::azure::AzureConfigKey as K;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_client_options(client)
        .with_retry(no_retries())
        .with_url(&url.base);
    if let Ok(text) = std::env::var("AZURE_STORAGE_CONNECTION_STRING") {
        builder = connection_string(builder, &text)?;
    }
    if let Ok(account) = std::env::var("AZURE_STORAGE_ACCOUNT") {
        builder = builder.with_account(account);
    }
    if let Ok(key) = std::env::var("AZURE_STORAGE_KEY") {
        builder = builder.with_access_key(key);
    }
    let keys: [(&str, AzureConfigKey); 5] = [
        ("account", K::AccountName),
        ("endpoint", K::Endpoint),
        ("credential", K::CredentialType),
        ("client_id", K::ClientId),
        ("tenant_id", K::AuthorityId),
    ];
    for (name, key) in keys {
        if let Some(value) = url.option(name) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(emulator) = url.flag("emulator")? {
        builder = builder.with_use_emulator(emulator);
    }
    if let Some(fabric) = url.flag("fabric")? {
        builder = builder.with_use_fabric_endpoint(fabric);
    }
    if let Some(anonymous) = url.flag("anonymous")? {
        builder = builder.with_skip_signature(anonymous);
    }
    Ok(builder)
}

/// `AccountName=…;AccountKey=…;BlobEndpoint=…;…`, as the portal shows it.
fn connection_string(
    mut builder: MicrosoftAzureBuilder,
    text: &str,
) -> Result<MicrosoftAzureBuilder, StoreError> {
    let mut account = None;
    let mut suffix = None;
    let mut endpoint = None;
    for item in text.split(';').filter(|item| !item.trim().is_empty()) {
        let Some((name, value)) = item.split_once('=') else {
            return Err(StoreError::Config("AZURE_STORAGE_CONNECTION_STRING: an item lacks '='".to_owned()));
        };
        match name.trim() {
            "AccountName" => account = Some(value),
            "AccountKey" => builder = builder.with_access_key(value),
            "SharedAccessSignature" => builder = builder.with_config(AzureConfigKey::SasKey, value),
            "BlobEndpoint" => endpoint = Some(value.to_owned()),
            "EndpointSuffix" => suffix = Some(value),
            "UseDevelopmentStorage" if value == "true" => builder = builder.with_use_emulator(true),
            _ => {}
        }
    }
    if let (None, Some(account), Some(suffix)) = (&endpoint, account, suffix) {
        endpoint = Some(format!("https://{account}.blob.{suffix}"));
    }
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = endpoint {
        if endpoint.starts_with("http://") {
            builder = builder.with_allow_http(true);
        }
        builder = builder.with_endpoint(endpoint);
    }
    Ok(builder)
}
