//! HTTP: probes, metrics and what the public may read. Nothing on it is secret, and it changes nothing.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Whether the node can serve mail, and if not why.
pub type Readiness = Result<(), String>;

#[derive(Clone)]
struct Shared {
    ready: watch::Receiver<Readiness>,
    metrics: Arc<Metrics>,
}

/// Serves until cancelled; `public` beside the rest.
pub async fn serve(
    listener: TcpListener,
    ready: watch::Receiver<Readiness>,
    metrics: Arc<Metrics>,
    public: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(all_metrics))
        .with_state(Shared { ready, metrics })
        .merge(public);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    match &*shared.ready.borrow() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn all_metrics(State(shared): State<Shared>) -> impl IntoResponse {
    // Some numbers are counted when they are asked for, and that may touch the disk.
    let text = tokio::task::spawn_blocking(move || shared.metrics.encode()).await;
    match text {
        Ok(Ok(text)) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        failed => {
            let mut text = String::from("metrics could not be gathered");
            if let Ok(Err(error)) = failed {
                let _ = write!(text, ": {error}");
            }
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}
