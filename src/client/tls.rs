//! The certificates that a client accepts: those signed by an authority of the system, or of `--ca`.

use crate::config::Registry;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

type Builder = ConfigBuilder<AgentScope>;

/// Adds the authorities, if the server or the proxy speaks https.
pub fn settings(builder: Builder, registry: &Registry) -> Result<Builder, String> {
    if registry.is_https() || proxy_is_https() {
        crate::tls::install();
        let roots = crate::tls::load_roots(registry.ca.as_deref())?;
        return Ok(with_roots(builder, &roots));
    }
    if registry.ca.is_some() {
        log::warn!("--ca has no effect: {} is not https", registry.url);
    }
    Ok(builder)
}

fn proxy_is_https() -> bool {
    ureq::Proxy::try_from_env().is_some_and(|proxy| proxy.uri().scheme_str() == Some("https"))
}

#[cfg(feature = "tls")]
fn with_roots(builder: Builder, roots: &crate::tls::Roots) -> Builder {
    use ureq::tls::{Certificate, RootCerts, TlsConfig};
    let roots: Vec<_> = roots
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let roots = RootCerts::Specific(roots.into());
    builder.tls_config(TlsConfig::builder().root_certs(roots).build())
}

#[cfg(not(feature = "tls"))]
fn with_roots(builder: Builder, _roots: &crate::tls::Roots) -> Builder {
    builder
}
