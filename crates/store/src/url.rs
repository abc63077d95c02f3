//! A store's URL: where the bucket is, and options in its query.
//!
//! ```text
//! file:///absolute/dir
//! s3://bucket/prefix?region=eu-central-1           also s3a://, https://s3.REGION.amazonaws.com/bucket/prefix
//! s3://bucket/prefix?endpoint=http://127.0.0.1:9000
//! gs://bucket/prefix
//! az://container/prefix?account=NAME               also abfs[s]://container@account.dfs.core.windows.net/prefix,
//!                                                  https://account.blob.core.windows.net/container/prefix
//! ```
//!
//! Secrets do not belong into a URL, because process lists and logs show it: an option that would hold one is refused
//! with the name of the variable to use.

use std::collections::BTreeMap;
use std::fmt;

use object_store::ObjectStoreScheme;
use reqwest::Url;

use crate::StoreError;

/// Which kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory.
    Directory,
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl StoreKind {
    /// As a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::S3 => "S3",
            Self::Gcs => "Google Cloud Storage",
            Self::Azure => "Azure Blob Storage",
        }
    }
}

/// A parsed URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl {
    pub(crate) kind: StoreKind,
    /// Without options; for a directory the path.
    pub(crate) base: String,
    pub(crate) prefix: String,
    pub(crate) options: BTreeMap<String, String>,
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == StoreKind::Directory {
            f.write_str("file://")?;
        }
        f.write_str(&self.base)
    }
}

/// What an option does, for messages.
pub(crate) struct OptionHelp {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
}

const fn option(name: &'static str, help: &'static str) -> OptionHelp {
    OptionHelp { name, help }
}

const COMMON: &[OptionHelp] = &[
    option("endpoint", "the service's own URL, for anything but the cloud's public one"),
    option("allow_http", "true: unencrypted HTTP is allowed (with an http:// endpoint it is)"),
    option("ca_file", "PEM file of CAs to trust besides the system's"),
    option("proxy", "URL of an HTTP proxy"),
    option("proxy_ca_file", "PEM file of the proxy's CA"),
    option("proxy_excludes", "hosts that bypass the proxy, with commas"),
    option("anonymous", "true: requests are not signed"),
];
const S3: &[OptionHelp] = &[
    option("region", "the bucket's region (AWS_REGION)"),
    option("profile", "a profile of ~/.aws/config (builds with the feature aws)"),
    option("path_style", "false: the bucket is part of the host name; an endpoint then includes it"),
    option("sse", "encryption at rest: s3, kms, dsse or c"),
    option("kms_key_id", "the key for sse=kms and sse=dsse"),
    option("bucket_key", "true: use an S3 bucket key with sse=kms"),
    option("sse_c_key_file", "file with the base64 key for sse=c"),
    option("unsigned_payload", "true: bodies are not signed, which saves CPU over TLS"),
    option("checksum", "sha256 or crc64nvme: an additional checksum of bodies"),
    option("bulk_delete", "true: delete with DeleteObjects instead of DELETE"),
    option("s3_express", "true: an S3 Express One Zone bucket"),
    option("requester_pays", "true: pay for requests to another's bucket"),
    option("imdsv1_fallback", "true: credentials of the machine by IMDSv1 if v2 is refused"),
];
const GCS: &[OptionHelp] = &[
    option("service_account", "path of a service account's JSON key"),
    option("credentials_file", "path of application default credentials"),
];
const AZURE: &[OptionHelp] = &[
    option("account", "the storage account (AZURE_STORAGE_ACCOUNT_NAME)"),
    option("emulator", "true: Azurite on 127.0.0.1:10000 with its well-known key"),
    option(
        "credential",
        "auto, access_key, sas_token, client_secret, workload_identity, managed_identity or azure_cli",
    ),
    option("client_id", "client id of a service principal or a user-assigned identity"),
    option("tenant_id", "its tenant"),
    option("fabric", "true: a Microsoft Fabric endpoint"),
];
/// (part of an option's name, where the secret belongs).
const SECRETS: &[(&str, &str)] = &[
    ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ("access_key_id", "AWS_ACCESS_KEY_ID"),
    ("session_token", "AWS_SESSION_TOKEN"),
    ("account_key", "AZURE_STORAGE_ACCOUNT_KEY"),
    ("access_key", "AZURE_STORAGE_ACCOUNT_KEY"),
    ("sas", "AZURE_STORAGE_SAS_TOKEN"),
    ("sig", "AZURE_STORAGE_SAS_TOKEN"),
    ("client_secret", "AZURE_CLIENT_SECRET"),
    ("bearer_token", "GOOGLE_BEARER_TOKEN or AZURE_STORAGE_TOKEN"),
    ("service_account_key", "GOOGLE_SERVICE_ACCOUNT_KEY"),
];

const FORMS: &str = "stores are named file:///absolute/dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix \
                     or abfss://container@account.dfs.core.windows.net/prefix";

impl StoreUrl {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let wrong = |why: &str| StoreError::Config(format!("store URL {:?}: {why}", without_secrets(url)));
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(wrong("the path after file:// must be absolute"));
            }
            let base = path.to_owned();
            return Ok(Self {
                kind: StoreKind::Directory,
                base,
                prefix: String::new(),
                options: BTreeMap::new(),
            });
        }
        let mut parsed = Url::parse(url).map_err(|error| wrong(&format!("{error}; {FORMS}")))?;
        if parsed.password().is_some() {
            return Err(wrong(
                "a password does not belong into a URL; credentials come from the environment",
            ));
        }
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|_| wrong(FORMS))?;
        let kind = match scheme {
            ObjectStoreScheme::AmazonS3 => StoreKind::S3,
            ObjectStoreScheme::GoogleCloudStorage => StoreKind::Gcs,
            ObjectStoreScheme::MicrosoftAzure => StoreKind::Azure,
            _ => return Err(wrong(FORMS)),
        };
        let mut options = BTreeMap::new();
        for (name, value) in parsed.query_pairs() {
            check_option(kind, &name).map_err(|why| wrong(&why))?;
            options.insert(name.into_owned(), value.into_owned());
        }
        parsed.set_query(None);
        parsed.set_fragment(None);
        Ok(Self { kind, base: parsed.to_string(), prefix: prefix.to_string(), options })
    }

    /// Which kind of store.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Below which prefix of the bucket objects lie; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
        match self.option(name) {
            None => Ok(None),
            Some("true" | "1" | "yes") => Ok(Some(true)),
            Some("false" | "0" | "no") => Ok(Some(false)),
            Some(other) => {
                Err(StoreError::Config(format!("store URL: {name}={other} is neither true nor false")))
            }
        }
    }
}

fn options_of(kind: StoreKind) -> impl Iterator<Item = &'static OptionHelp> {
    let own = match kind {
        StoreKind::Directory => &[],
        StoreKind::S3 => S3,
        StoreKind::Gcs => GCS,
        StoreKind::Azure => AZURE,
    };
    COMMON.iter().chain(own)
}

fn check_option(kind: StoreKind, name: &str) -> Result<(), String> {
    if options_of(kind).any(|option| option.name == name) {
        return Ok(());
    }
    if let Some((_, variable)) = SECRETS.iter().find(|(secret, _)| name.contains(secret)) {
        return Err(format!(
            "a secret does not belong into a URL, which logs and process lists show; set {variable}"
        ));
    }
    let known: Vec<String> =
        options_of(kind).map(|option| format!("\n  {} - {}", option.name, option.help)).collect();
    Err(format!("unknown option {name:?}; options of {}:{}", kind.name(), known.concat()))
}

/// For messages: no query, and no password.
fn without_secrets(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match (plain.find("://"), plain.rfind('@')) {
        (Some(scheme), Some(at)) if plain[scheme + 3..at].contains(':') => {
            format!("{}***{}", &plain[..scheme + 3], &plain[at..])
        }
        _ => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read() {
        for (url, kind, base, prefix) in [
            ("file:///a/b", StoreKind::Directory, "/a/b", ""),
            ("s3://b/p/q?region=eu-west-1&path_style=false", StoreKind::S3, "s3://b/p/q", "p/q"),
            ("s3://b", StoreKind::S3, "s3://b", ""),
            ("s3://b/", StoreKind::S3, "s3://b/", ""),
            ("gs://b/p", StoreKind::Gcs, "gs://b/p", "p"),
            ("az://c/p?account=x", StoreKind::Azure, "az://c/p", "p"),
            (
                "abfss://c@a.dfs.core.windows.net/p",
                StoreKind::Azure,
                "abfss://c@a.dfs.core.windows.net/p",
                "p",
            ),
            (
                "https://a.blob.core.windows.net/c/p",
                StoreKind::Azure,
                "https://a.blob.core.windows.net/c/p",
                "p",
            ),
            (
                "https://s3.eu-west-1.amazonaws.com/b/p",
                StoreKind::S3,
                "https://s3.eu-west-1.amazonaws.com/b/p",
                "p",
            ),
        ] {
            let parsed = StoreUrl::parse(url).unwrap();
            assert_eq!(
                (parsed.kind, parsed.base.as_str(), parsed.prefix.as_str()),
                (kind, base, prefix),
                "{url}"
            );
        }
        let parsed = StoreUrl::parse("s3://b?endpoint=http%3A%2F%2F127.0.0.1%3A9000&region=x").unwrap();
        assert_eq!(parsed.option("endpoint"), Some("http://127.0.0.1:9000"));
        assert_eq!(
            StoreUrl::parse("s3://b?endpoint=http://h:1").unwrap().option("endpoint"),
            Some("http://h:1")
        );
        assert!(StoreUrl::parse("s3://b?path_style=maybe").unwrap().flag("path_style").is_err());
    }

    #[test]
    fn mistakes_are_explained_and_secrets_are_not_repeated() {
        for (url, says) in [
            ("file://relative", "absolute"),
            ("/plain/dir", "file:///absolute"),
            ("ftp://x/y", "s3://bucket"),
            ("http://x/y", "s3://bucket"),
            ("s3://b?regoin=x", "region - the bucket's region"),
            ("s3://b?secret_access_key=hush", "AWS_SECRET_ACCESS_KEY"),
            ("https://a.blob.core.windows.net/c?sig=hush", "AZURE_STORAGE_SAS_TOKEN"),
            ("s3://key:hush@b/p", "environment"),
        ] {
            let error = StoreUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hush"), "{url}: {error}");
        }
    }
}
