//! The SDK's requests over reqwest.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use isobar_host::Host;

use crate::StoreError;
use crate::cause::chain_text;
use crate::cloud::{install_tls, read_pem};
use crate::url::StoreUrl;

/// For a whole request: these are small questions.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clones are one client.
#[derive(Debug, Clone)]
pub(super) struct Client(reqwest::Client);

impl Client {
    /// With the proxy and the CAs that the URL names.
    pub(super) fn new(host: &Host, url: &StoreUrl) -> Result<Self, StoreError> {
        install_tls();
        let wrong = |error: reqwest::Error| StoreError::Config(format!("store: {}", chain_text(&error)));
        let mut builder = reqwest::Client::builder().timeout(PATIENCE);
        if let Some(path) = url.option("ca_file") {
            let bundle = reqwest::Certificate::from_pem_bundle(&read_pem(host, path)?).map_err(wrong)?;
            for certificate in bundle {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if let Some(proxy) = url.option("proxy") {
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(wrong)?);
        }
        Ok(Self(builder.build().map_err(wrong)?))
    }

    async fn send(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let user = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::user(error);
        let method = request.method().parse::<reqwest::Method>().map_err(|error| user(error.into()))?;
        let body =
            request.body().bytes().ok_or_else(|| user("a streamed body is not sent this way".into()))?;
        let mut sent = self.0.request(method, request.uri()).body(bytes::Bytes::copy_from_slice(body));
        for (name, value) in request.headers() {
            sent = sent.header(name, value);
        }
        let answer = sent.send().await.map_err(|error| match error {
            error if error.is_timeout() => ConnectorError::timeout(error.into()),
            error => ConnectorError::io(error.into()),
        })?;
        let status = StatusCode::try_from(answer.status().as_u16()).map_err(|error| user(error.into()))?;
        let headers = answer.headers().clone();
        let body = answer.bytes().await.map_err(|error| ConnectorError::io(error.into()))?;
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        for (name, value) in &headers {
            if let Ok(value) = value.to_str() {
                response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
            }
        }
        Ok(response)
    }
}

impl HttpConnector for Client {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().send(request))
    }
}

impl HttpClient for Client {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
