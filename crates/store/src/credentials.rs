//! Where a store's credentials come from, told without asking anybody: for `isobar store check`, in the same order in which
//! object_store's builders look.

use crate::url::{StoreKind, StoreUrl};

/// Where credentials are, or what was looked at in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialSource {
    /// Where they will be taken from.
    pub from: String,
    /// The environment or the URL holds them; else a service of the machine or of the cloud is asked.
    pub given: bool,
    /// What else a person should know.
    pub note: Option<String>,
}

impl CredentialSource {
    fn given(from: impl Into<String>) -> Self {
        Self { from: from.into(), given: true, note: None }
    }

    fn asked(from: impl Into<String>, note: impl Into<String>) -> Self {
        Self { from: from.into(), given: false, note: Some(note.into()) }
    }
}

/// The environment, as a function so that tests have one of their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where the credentials for `url` come from; `None`: it needs none.
pub fn credential_source(url: &StoreUrl, env: Environment<'_>) -> Option<CredentialSource> {
    if url.flag("anonymous") == Ok(Some(true)) {
        return None;
    }
    match url.kind() {
        StoreKind::Directory => None,
        StoreKind::S3 => Some(aws(url, env)),
        StoreKind::Gcs => Some(google(url, env)),
        StoreKind::Azure => Some(azure(url, env)),
    }
}

/// What object_store finds of AWS in the environment, without asking this machine.
pub(crate) fn aws_builders_find(env: Environment<'_>) -> Option<CredentialSource> {
    if let Some(key) = env("AWS_ACCESS_KEY_ID") {
        let shown: String = key.chars().take(4).collect();
        let token = if env("AWS_SESSION_TOKEN").is_some() { " and AWS_SESSION_TOKEN" } else { "" };
        let mut source = CredentialSource::given(format!("environment: AWS_ACCESS_KEY_ID ({shown}…){token}"));
        if env("AWS_SECRET_ACCESS_KEY").is_none() {
            source.note = Some("AWS_SECRET_ACCESS_KEY is not set".to_owned());
        }
        return Some(source);
    }
    if let (Some(file), Some(role)) = (env("AWS_WEB_IDENTITY_TOKEN_FILE"), env("AWS_ROLE_ARN")) {
        return Some(CredentialSource::given(format!("web identity: {role} by the token in {file}")));
    }
    if env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() {
        return Some(CredentialSource::given("ECS task role (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI)"));
    }
    if env("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some()
        && env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").is_some()
    {
        return Some(CredentialSource::given("EKS Pod Identity (AWS_CONTAINER_CREDENTIALS_FULL_URI)"));
    }
    None
}

fn aws(url: &StoreUrl, env: Environment<'_>) -> CredentialSource {
    if let Some(name) = url.option("profile") {
        return CredentialSource::given(format!("profile {name}, as the URL says"));
    }
    if let Some(source) = aws_builders_find(env) {
        return source;
    }
    let profile = match env("AWS_PROFILE") {
        Some(name) if cfg!(feature = "aws") => {
            return CredentialSource::given(format!("profile {name} (AWS_PROFILE)"));
        }
        None if cfg!(feature = "aws") => {
            return CredentialSource::asked(
                "the default profile if there is one, else the role of this machine (EC2 instance metadata, IMDSv2)",
                "AWS_ACCESS_KEY_ID, AWS_PROFILE, a web identity and a container role are not set",
            );
        }
        Some(name) => format!(
            "AWS_PROFILE={name} is set, but this build reads no profiles: run \
             eval \"$(aws configure export-credentials --format env)\" first"
        ),
        None => {
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity and a container role are not set"
                .to_owned()
        }
    };
    CredentialSource::asked("role of this machine (EC2 instance metadata, IMDSv2)", profile)
}

fn google(url: &StoreUrl, env: Environment<'_>) -> CredentialSource {
    if let Some(path) = url.option("service_account") {
        return CredentialSource::given(format!("service account key {path}"));
    }
    for name in [
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ] {
        if env(name).is_some() {
            return CredentialSource::given(format!("service account key ({name})"));
        }
    }
    if let Some(path) =
        url.option("credentials_file").map(str::to_owned).or_else(|| env("GOOGLE_APPLICATION_CREDENTIALS"))
    {
        return CredentialSource::given(format!("application default credentials {path}"));
    }
    if env("GOOGLE_BEARER_TOKEN").is_some() {
        return CredentialSource::given("bearer token (GOOGLE_BEARER_TOKEN); it does not renew itself");
    }
    CredentialSource::asked(
        "gcloud's application default credentials if there are any, else this machine's service account (metadata server)",
        "GOOGLE_SERVICE_ACCOUNT and GOOGLE_APPLICATION_CREDENTIALS are not set",
    )
}

fn azure(url: &StoreUrl, env: Environment<'_>) -> CredentialSource {
    if url.flag("emulator") == Ok(Some(true)) {
        return CredentialSource::given("Azurite's well-known key");
    }
    if let Some(kind) = url.option("credential").filter(|kind| *kind != "auto") {
        return CredentialSource::given(format!("{kind}, as the URL says"));
    }
    let one = |names: &[&str]| names.iter().find(|name| env(name).is_some()).map(|name| (*name).to_owned());
    if let Some(name) = one(&["AZURE_STORAGE_TOKEN"]) {
        return CredentialSource::given(format!("bearer token ({name}); it does not renew itself"));
    }
    if let Some(name) = one(&[
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
    ]) {
        return CredentialSource::given(format!("environment: {name}"));
    }
    let client =
        url.option("client_id").is_some() || one(&["AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"]).is_some();
    if client && env("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        return CredentialSource::given("workload identity (AZURE_FEDERATED_TOKEN_FILE)");
    }
    if client && one(&["AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"]).is_some() {
        return CredentialSource::given("service principal (AZURE_CLIENT_SECRET)");
    }
    if let Some(name) = one(&["AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN"]) {
        return CredentialSource::given(format!("shared access signature ({name})"));
    }
    if env("AZURE_USE_AZURE_CLI").is_some_and(|value| value == "true") {
        return CredentialSource::given("Azure CLI (az login)");
    }
    CredentialSource::asked(
        "managed identity of this machine (IMDS)",
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_SECRET and AZURE_FEDERATED_TOKEN_FILE are not set; \
         for `az login` put credential=azure_cli into the URL",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(url: &str, set: &[&str]) -> Option<CredentialSource> {
        let env = |name: &str| set.contains(&name).then(|| "VALUE-OF-IT".to_owned());
        credential_source(&StoreUrl::parse(url).unwrap(), &env)
    }

    #[test]
    fn sources_are_found_in_order_and_secrets_are_not_shown() {
        for (url, set, says, given) in [
            ("s3://b", &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ROLE_ARN"][..], "VALU…", true),
            ("s3://b", &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"], "web identity", true),
            ("s3://b", &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"], "ECS", true),
            (
                "s3://b",
                &["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"],
                "Pod Identity",
                true,
            ),
            ("s3://b", &[], "IMDSv2", false),
            ("s3://b?profile=p", &["AWS_ACCESS_KEY_ID"], "profile p", true),
            ("gs://b", &["GOOGLE_SERVICE_ACCOUNT"], "service account key", true),
            ("gs://b?service_account=/k.json", &[], "/k.json", true),
            ("gs://b", &["GOOGLE_APPLICATION_CREDENTIALS"], "application default", true),
            ("gs://b", &[], "metadata server", false),
            ("az://c?emulator=true", &[], "Azurite", true),
            ("az://c", &["AZURE_STORAGE_ACCOUNT_KEY"], "AZURE_STORAGE_ACCOUNT_KEY", true),
            ("az://c", &["AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"], "workload identity", true),
            ("az://c", &["AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"], "service principal", true),
            ("az://c", &["AZURE_STORAGE_SAS_TOKEN"], "shared access", true),
            ("az://c?credential=azure_cli", &[], "azure_cli", true),
            ("az://c", &[], "managed identity", false),
        ] {
            let source = from(url, set).unwrap();
            assert!(source.from.contains(says), "{url}: {source:?}");
            assert_eq!(source.given, given, "{url}");
            assert!(!source.from.contains("VALUE-OF-IT") || says != "VALU…");
        }
        assert_eq!(from("s3://b?anonymous=true", &[]), None);
        assert_eq!(from("file:///d", &[]), None);
        let profile = from("s3://b", &["AWS_PROFILE"]).unwrap();
        assert!(
            profile.given == cfg!(feature = "aws")
                && (profile.given || profile.note.unwrap().contains("export-credentials"))
        );
    }
}
