//! /livez, /readyz and /metrics.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::metrics::Metrics;

/// What the probes look at.
#[derive(Clone)]
pub struct Probes {
    /// Set once the stores are filled; a standby is ready too.
    pub ready: Arc<AtomicBool>,
    /// For /metrics.
    pub metrics: Metrics,
}

/// Serves until the listener fails.
pub async fn serve(listener: tokio::net::TcpListener, probes: Probes) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|State(probes): State<Probes>| async move { probes.metrics.render() }))
        .with_state(probes);
    axum::serve(listener, router).await
}

async fn readyz(State(probes): State<Probes>) -> (StatusCode, &'static str) {
    match probes.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not been read yet"),
    }
}
