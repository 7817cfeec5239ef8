//! The certificates that a client accepts: those signed by an authority of the system, or of `--ca`.

use crate::config::Registry;
use crate::tls::Roots;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

type Builder = ConfigBuilder<AgentScope>;

/// Reads the authorities, if the server or the proxy speaks https.
pub fn load(registry: &Registry, needs_tls: bool) -> Result<Option<Roots>, String> {
    if needs_tls {
        crate::tls::install();
        return crate::tls::load_roots(registry.ca.as_deref()).map(Some);
    }
    if registry.ca.is_some() {
        log::warn!("--ca has no effect: {registry} is not https");
    }
    Ok(None)
}

/// Adds the authorities, if there are any.
pub fn settings(builder: Builder, roots: Option<&Roots>) -> Builder {
    match roots {
        Some(roots) => with_roots(builder, roots),
        None => builder,
    }
}

#[cfg(feature = "tls")]
fn with_roots(builder: Builder, roots: &Roots) -> Builder {
    use ureq::tls::{Certificate, RootCerts, TlsConfig};
    let roots: Vec<_> = roots
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let roots = RootCerts::Specific(roots.into());
    builder.tls_config(TlsConfig::builder().root_certs(roots).build())
}

#[cfg(not(feature = "tls"))]
fn with_roots(builder: Builder, _roots: &Roots) -> Builder {
    builder
}
