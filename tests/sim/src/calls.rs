//! Between a node's connections and its peer service: calls may be delivered twice.
//!
//! A network repeats no call by itself, but proxies, retries and whatever is built next may; the protocol must bear it.
//! The answer's date is fixed here as well: it is the only thing in a message that a wall clock would decide.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tonic::body::Body;
use tower::{Layer, Service, ServiceExt};

use crate::network::Network;

/// Calls of one message and one answer: these can be repeated as a whole.
const REPEATABLE: [&str; 5] = ["/Vote", "/PreVote", "/TransferLeader", "/ReadIndex", "/Hello"];

/// Adds repetition to a service.
#[derive(Clone)]
pub(crate) struct Repeating(pub(crate) Network);

impl<S> Layer<S> for Repeating {
    type Service = Repeated<S>;

    fn layer(&self, inner: S) -> Repeated<S> {
        Repeated { network: self.0.clone(), inner }
    }
}

/// A service whose calls are repeated now and then.
#[derive(Clone)]
pub(crate) struct Repeated<S> {
    network: Network,
    inner: S,
}

impl<S> Service<Request<Body>> for Repeated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let repeatable = REPEATABLE.iter().any(|call| request.uri().path().ends_with(call));
        let again = if repeatable { self.network.repeat_after() } else { None };
        let inner = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, inner);
        Box::pin(async move {
            let request = match again {
                None => request,
                Some(pause) => {
                    let (head, body) = request.into_parts();
                    // A cut body is for the service to refuse.
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let copy = |body| Request::from_parts(head.clone(), Body::new(Full::new(body)));
                    let (second, later) = (copy(body.clone()), ready.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        // Nobody waits for the second answer.
                        let _ = later.oneshot(second).await;
                    });
                    copy(body)
                }
            };
            let mut response = ready.call(request).await?;
            response.headers_mut().insert(header::DATE, HeaderValue::from_static("simulated"));
            Ok(response)
        })
    }
}
