//! Buckets: making one that is fit, and what in an existing one's settings would harm.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, BucketLocationConstraint,
    BucketVersioningStatus, CreateBucketConfiguration, ExpirationStatus, LifecycleRule, LifecycleRuleFilter,
};
use aws_smithy_types::error::display::DisplayErrorContext;
use isobar_host::Host;

use super::{ANY_REGION, sdk_config};
use crate::StoreError;
use crate::url::{StoreKind, StoreUrl};

/// After so long the parts of an upload that nobody completed are removed.
const ABORT_DAYS: i32 = 7;
const RULE: &str = "isobar-unfinished-uploads";

/// What a setting means for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It costs money or care.
    Costly,
    /// Records would be lost, or deletes refused.
    Harmful,
    /// The store does not say.
    Unknown,
}

/// One setting of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Which.
    pub name: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// How it is, and what to do about it.
    pub words: String,
}

struct Place {
    client: Client,
    bucket: String,
    prefix: String,
    region: String,
}

async fn place(host: &Host, url: &str) -> Result<Place, StoreError> {
    let url = StoreUrl::parse(url)?;
    let bucket = match url.kind {
        StoreKind::S3 => url.base.strip_prefix("s3://").or_else(|| url.base.strip_prefix("s3a://")),
        _ => None,
    };
    let bucket = bucket.and_then(|rest| rest.split('/').next()).filter(|bucket| !bucket.is_empty());
    let bucket =
        bucket.ok_or_else(|| StoreError::Config("the bucket is named as s3://bucket/prefix".to_owned()))?;
    let shared = sdk_config(host, &url).await?;
    let region = shared.region().map_or(ANY_REGION, |region| region.as_ref()).to_owned();
    let mut config = aws_sdk_s3::config::Builder::from(&shared);
    if shared.region().is_none() {
        config = config.region(aws_config::Region::new(region.clone()));
    }
    if let Some(endpoint) = url.option("endpoint") {
        config = config.endpoint_url(endpoint).force_path_style(url.flag("path_style")?.unwrap_or(true));
    }
    let (bucket, prefix) = (bucket.to_owned(), url.prefix.clone());
    Ok(Place { client: Client::from_conf(config.build()), bucket, prefix, region })
}

/// The store's code and words.
fn words<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), message) => format!("{code}: {}", message.unwrap_or_default()),
        (None, _) => DisplayErrorContext(error).to_string(),
    }
}

/// Makes the bucket that `url` names, with a rule that removes unfinished uploads. Answers what was done, a line each. An
/// own bucket that is there already is left as it is.
pub async fn make_bucket(host: &Host, url: &str) -> Result<Vec<String>, StoreError> {
    let Place { client, bucket, region, .. } = place(host, url).await?;
    let mut request = client.create_bucket().bucket(&bucket);
    // Amazon's first region may not be named.
    if region != ANY_REGION {
        let constraint = BucketLocationConstraint::from(region.as_str());
        request = request.create_bucket_configuration(
            CreateBucketConfiguration::builder().location_constraint(constraint).build(),
        );
    }
    match request.send().await {
        Ok(_) => {}
        Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => {
            return Ok(vec![format!("bucket {bucket} is there already, and yours; nothing was changed")]);
        }
        Err(error) => {
            return Err(StoreError::Config(format!("bucket {bucket} was not made: {}", words(&error))));
        }
    }
    let mut done = vec![format!("bucket {bucket} was made in {region}")];
    let built = LifecycleRule::builder()
        .id(RULE)
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix("").build())
        .abort_incomplete_multipart_upload(
            AbortIncompleteMultipartUpload::builder().days_after_initiation(ABORT_DAYS).build(),
        )
        .build()
        .and_then(|rule| BucketLifecycleConfiguration::builder().rules(rule).build());
    let rules = built.map_err(|error| StoreError::Config(error.to_string()))?;
    let set = client
        .put_bucket_lifecycle_configuration()
        .bucket(&bucket)
        .lifecycle_configuration(rules)
        .send()
        .await;
    done.push(match set {
        Ok(_) => format!("unfinished uploads are removed after {ABORT_DAYS} days"),
        Err(error) => {
            format!("no rule for unfinished uploads, because the store refused it ({})", words(&error))
        }
    });
    Ok(done)
}

/// What the settings of the bucket that `url` names mean for a cluster.
pub async fn bucket_settings(host: &Host, url: &str) -> Result<Vec<Setting>, StoreError> {
    let place = place(host, url).await?;
    Ok(vec![versioning(&place).await, lock(&place).await, lifecycle(&place).await])
}

fn unknown(name: &'static str, why: String) -> Setting {
    Setting { name, verdict: Verdict::Unknown, words: format!("the store does not say ({why})") }
}

async fn versioning(place: &Place) -> Setting {
    let name = "see its versioning";
    match place.client.get_bucket_versioning().bucket(&place.bucket).send().await {
        Ok(found) if found.status() == Some(&BucketVersioningStatus::Enabled) => Setting {
            name,
            verdict: Verdict::Costly,
            words: "on: what Isobar deletes stays, and is paid for. Suspend it, or add a rule that removes noncurrent versions"
                .to_owned(),
        },
        Ok(_) => Setting { name, verdict: Verdict::Fine, words: "off".to_owned() },
        Err(error) => unknown(name, words(&error)),
    }
}

async fn lock(place: &Place) -> Setting {
    let name = "see its object lock";
    match place.client.get_object_lock_configuration().bucket(&place.bucket).send().await {
        Ok(found) => {
            let rule = found.object_lock_configuration().and_then(|found| found.rule());
            match rule.and_then(|rule| rule.default_retention()) {
                Some(_) => Setting {
                    name,
                    verdict: Verdict::Harmful,
                    words: "objects are locked by default: Isobar could delete nothing. Use a bucket without default retention"
                        .to_owned(),
                },
                None => Setting { name, verdict: Verdict::Fine, words: "no default retention".to_owned() },
            }
        }
        Err(error) if error.code() == Some("ObjectLockConfigurationNotFoundError") => {
            Setting { name, verdict: Verdict::Fine, words: "none".to_owned() }
        }
        Err(error) => unknown(name, words(&error)),
    }
}

async fn lifecycle(place: &Place) -> Setting {
    let name = "see its lifecycle rules";
    match place.client.get_bucket_lifecycle_configuration().bucket(&place.bucket).send().await {
        Ok(found) => judge(name, found.rules(), &place.prefix),
        Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => judge(name, &[], &place.prefix),
        Err(error) => unknown(name, words(&error)),
    }
}

/// Whether a rule that is limited to `limited_to` touches something below `prefix`.
fn touches(limited_to: &str, prefix: &str) -> bool {
    prefix.starts_with(limited_to) || limited_to.starts_with(prefix)
}

fn judge(name: &'static str, rules: &[LifecycleRule], prefix: &str) -> Setting {
    let mut aborts = false;
    for rule in rules.iter().filter(|rule| *rule.status() == ExpirationStatus::Enabled) {
        let filter = rule.filter();
        let by_filter = filter.and_then(|filter| filter.prefix().or_else(|| filter.and()?.prefix()));
        #[expect(deprecated, reason = "older buckets have it")]
        let limited_to = by_filter.or_else(|| rule.prefix()).unwrap_or_default();
        if !touches(limited_to, prefix) {
            continue;
        }
        aborts |= rule.abort_incomplete_multipart_upload().is_some();
        // Only `days` and `date` remove current objects; the third kind removes delete markers.
        let expires = rule.expiration().is_some_and(|at| at.days().is_some() || at.date().is_some());
        if expires || !rule.transitions().is_empty() {
            let id = rule.id().unwrap_or("without a name");
            let does = if expires { "removes objects" } else { "moves objects to another storage class" };
            return Setting {
                name,
                verdict: Verdict::Harmful,
                words: format!(
                    "rule {id} {does} below {limited_to:?}: records would be lost or out of reach. Isobar keeps by each \
                     topic's retention; remove the rule"
                ),
            };
        }
    }
    if aborts {
        Setting { name, verdict: Verdict::Fine, words: "unfinished uploads are removed".to_owned() }
    } else {
        Setting {
            name,
            verdict: Verdict::Costly,
            words: format!(
                "none that removes unfinished multipart uploads, which are paid for: add one ({ABORT_DAYS} days)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{LifecycleExpiration, Transition, TransitionStorageClass};

    use super::*;

    fn rule(prefix: &str) -> aws_sdk_s3::types::builders::LifecycleRuleBuilder {
        LifecycleRule::builder()
            .id("r")
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
    }

    fn verdict(rules: &[LifecycleRule], prefix: &str) -> Verdict {
        judge("x", rules, prefix).verdict
    }

    #[test]
    fn rules_that_take_objects_away_are_harmful_where_they_reach_us() {
        let expiring =
            |prefix| rule(prefix).expiration(LifecycleExpiration::builder().days(3).build()).build().unwrap();
        assert_eq!(verdict(&[expiring("")], "a/b"), Verdict::Harmful);
        assert_eq!(verdict(&[expiring("a/")], "a/b"), Verdict::Harmful);
        assert_eq!(verdict(&[expiring("a/b/data")], "a/b"), Verdict::Harmful);
        assert_eq!(verdict(&[expiring("z")], "a/b"), Verdict::Costly);
        let glacier = Transition::builder().days(1).storage_class(TransitionStorageClass::Glacier).build();
        assert_eq!(verdict(&[rule("").transitions(glacier).build().unwrap()], ""), Verdict::Harmful);
        let markers = LifecycleExpiration::builder().expired_object_delete_marker(true).build();
        assert_eq!(verdict(&[rule("").expiration(markers).build().unwrap()], ""), Verdict::Costly);
        let disabled = LifecycleRule::builder().status(ExpirationStatus::Disabled);
        let disabled = disabled.expiration(LifecycleExpiration::builder().days(3).build()).build().unwrap();
        assert_eq!(verdict(&[disabled], ""), Verdict::Costly);
    }

    #[test]
    fn a_rule_for_unfinished_uploads_is_as_it_should_be() {
        let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(7).build();
        assert_eq!(
            verdict(&[rule("").abort_incomplete_multipart_upload(abort).build().unwrap()], "p"),
            Verdict::Fine
        );
        assert_eq!(verdict(&[], "p"), Verdict::Costly);
    }
}
