//! Connections: TLS, who may ask at all, how many at a time, and an end that loses no request.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use s3s::{
    Body, S3Error, S3ErrorCode,
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
    validation::NameValidation,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    HEALTH_PATH, VolumeError,
    s3::Bucket,
    secrets::{Certificate, Credentials},
    store::{GIVEN_UP, Store},
};

/// Connections at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take, and so how long a connection may be idle: longer than clients keep theirs.
const HEAD: Duration = Duration::from_secs(120);
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Longest XML of a request, in bytes: 10,000 parts of an upload, or 1,000 names.
const MAX_XML: usize = 4 << 20;
/// How often files with credentials and certificates are looked at.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// How often uploads that were given up are looked for.
const SWEEP: Duration = Duration::from_secs(3600);
/// How long requests that are under way may take at the end.
const END_WITHIN: Duration = Duration::from_secs(20);
/// Until the next try when no connection can be accepted, as without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What is served, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the volume is mounted.
    pub directory: PathBuf,
    /// Name of the bucket, and of its folder in the directory.
    pub bucket: String,
    /// Directory with the files [`crate::ACCESS_KEY_FILE`] and [`crate::SECRET_KEY_FILE`].
    pub credentials: PathBuf,
    /// Directory with the files [`crate::CERT_FILE`] and [`crate::KEY_FILE`]; none: without TLS.
    pub tls: Option<PathBuf>,
}

/// A directory that can be served.
pub struct Server {
    store: Arc<Store>,
    credentials: Arc<Credentials>,
    certificate: Option<Arc<Certificate>>,
    service: S3Service,
}

/// What the store has for a name is what it takes.
struct AnyBucket;

impl NameValidation for AnyBucket {
    fn validate_bucket_name(&self, name: &str) -> bool {
        !name.is_empty()
    }
}

struct Keys(Arc<Credentials>);

#[async_trait::async_trait]
impl s3s::auth::S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> s3s::S3Result<s3s::auth::SecretKey> {
        self.0.get_secret_key(access_key).await
    }
}

impl Server {
    /// Takes possession of the directory, and reads the files.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn open(options: &Options) -> Result<Self, VolumeError> {
        let credentials = Arc::new(Credentials::read(&options.credentials)?);
        let read = |directory: &PathBuf| Certificate::read(directory).map(Arc::new);
        let certificate = options.tls.as_ref().map(read).transpose()?;
        let store = Arc::new(Store::open(Path::new(&options.directory), &options.bucket)?);
        let mut config = S3Config::default();
        config.xml_max_body_size = MAX_XML;
        let mut builder = S3ServiceBuilder::new(Bucket::new(options.bucket.clone(), store.clone()));
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_auth(Keys(credentials.clone()));
        builder.set_validation(AnyBucket);
        Ok(Self { store, credentials, certificate, service: builder.build() })
    }

    /// Serves until `stop` completes, and then what is under way.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let acceptor = self.certificate.clone().map(acceptor);
        let care = tokio::spawn(care(self.store.clone(), self.credentials.clone(), self.certificate.clone()));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = async {
                let permit = connections.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accepted => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            // Answers are short, and waited for.
            let _ = stream.set_nodelay(true);
            let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
            let (service, store) = (self.service.clone(), self.store.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match acceptor {
                    None => connection(stream, service, store, watcher).await,
                    Some(acceptor) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => connection(stream, service, store, watcher).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a client gave up on TLS"),
                        Err(_) => tracing::debug!("a client took too long to agree on TLS"),
                    },
                }
            });
        }
        drop(listener);
        care.abort();
        if timeout(END_WITHIN, graceful.shutdown()).await.is_err() {
            tracing::warn!(
                "requests that took too long at the end were broken off; their clients send them again"
            );
        }
    }
}

fn acceptor(certificate: Arc<Certificate>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS");
    TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_cert_resolver(certificate)))
}

/// Looks at files that may change, and at uploads that were given up.
async fn care(store: Arc<Store>, credentials: Arc<Credentials>, certificate: Option<Arc<Certificate>>) {
    let (mut read, mut sweep) = (tokio::time::interval(READ_AGAIN), tokio::time::interval(SWEEP));
    loop {
        let sweeps = tokio::select! {
            _ = read.tick() => false,
            _ = sweep.tick() => true,
        };
        let (store, credentials, certificate) = (store.clone(), credentials.clone(), certificate.clone());
        let work = move || {
            if sweeps && let Err(error) = store.sweep(GIVEN_UP) {
                tracing::warn!(%error, "failed to look for uploads that were given up");
            }
            for result in
                [credentials.read_again(), certificate.map_or(Ok(()), |certificate| certificate.read_again())]
            {
                if let Err(error) = result {
                    tracing::warn!(%error, "going on with what was read before");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::error!(%error, "looking after the volume broke off; trying again");
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S3Service,
    store: Arc<Store>,
    watcher: Watcher,
) {
    let answer = service_fn(move |request| {
        let (service, store) = (service.clone(), store.clone());
        async move { Ok::<_, Infallible>(answer(request, service, store).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    if let Err(error) = watcher.watch(http.serve_connection(TokioIo::new(stream), answer)).await {
        tracing::debug!(%error, "a connection broke off");
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

fn refused(code: S3ErrorCode, message: &'static str) -> Response<Body> {
    S3Error::with_message(code, message)
        .to_http_response()
        .unwrap_or_else(|_| plain(StatusCode::FORBIDDEN, message))
}

async fn answer(request: Request<Incoming>, service: S3Service, store: Arc<Store>) -> Response<Body> {
    if request.uri().path() == HEALTH_PATH {
        return match tokio::task::spawn_blocking(move || store.check()).await {
            Ok(Ok(())) => plain(StatusCode::OK, "ok\n"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the directory cannot be read");
                plain(StatusCode::SERVICE_UNAVAILABLE, "the directory cannot be read; see the log\n")
            }
            Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "see the log\n"),
        };
    }
    // Of all ways to sign there is one, which is checked before anything of the body is read.
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if !header(AUTHORIZATION).is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256 ")) {
        return refused(
            S3ErrorCode::AccessDenied,
            "the request must be signed, with version 4 and in its header",
        );
    }
    if header(CONTENT_TYPE).is_some_and(|value| value.to_ascii_lowercase().starts_with("multipart/form-data"))
    {
        return refused(S3ErrorCode::AccessDenied, "forms are not taken");
    }
    // What was sent is what is stored.
    let signed = request.headers().get("x-amz-content-sha256").and_then(|value| value.to_str().ok());
    if signed.is_none_or(|value| value.contains("UNSIGNED")) {
        return refused(S3ErrorCode::AccessDenied, "the body must be signed as well");
    }
    let response = hyper::service::Service::call(&service, request).await;
    response.unwrap_or_else(|error| {
        tracing::error!(?error, "a request failed");
        plain(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
    })
}
