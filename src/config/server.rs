//! Settings of a server.

use super::database::{self, Database};
use crate::core::{NotifyPolicy, TextLimits};
use crate::rules::{MAX_LABEL_BYTES, wrong_regex};
use crate::server::api::browser::Authority;
use crate::server::blobs::BlobLimits;
use crate::server::http::{Engine, RequestLimits};
use crate::tls::CertificateFiles;
use crate::wire::duration::TimeSpan;
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// The longest name of a task, in bytes: it appears in tables and logs.
const MAX_NAME_BYTES: usize = 255;
/// The longest pattern, in bytes: a few dozen labels, written out.
const MAX_PATTERN_BYTES: usize = 1_024;
/// The largest compiled pattern, in KiB. Together with [`MAX_PATTERNS`] it bounds the memory (measured: about
/// twice the product), and together with the length of labels the time of a match.
const MAX_COMPILED_KIB: usize = 128;
/// The most known patterns: each new label is matched with all of them.
const MAX_PATTERNS: usize = 1_000;

/// The largest value of any limit: a sum of several must not overflow.
const MAX_NUMBER: usize = 100_000_000;

/// The arguments of `sidebike server`.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "SIDEBIKE_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9410"
    )]
    listen: String,
    /// What speaks HTTP: edge, or tiny_http where the build has it (for closed networks only)
    #[arg(
        long,
        env = "SIDEBIKE_ENGINE",
        value_name = "NAME",
        default_value = "edge",
        hide = !cfg!(feature = "tiny_http")
    )]
    engine: String,
    /// Database, in which acknowledged tasks survive a restart: a file, or postgres://USER@HOST/NAME for
    /// several servers [default: none, memory only]
    #[arg(
        long,
        env = "SIDEBIKE_DB",
        value_name = "FILE|URL",
        hide_env_values = true
    )]
    db: Option<PathBuf>,
    /// PEM file of the authorities that signed the certificate of PostgreSQL [default: the system's]
    #[arg(long, env = "SIDEBIKE_DB_CA", value_name = "FILE")]
    db_ca: Option<PathBuf>,
    /// With several servers: the URL under which agents and the others reach this one [default:
    /// --public-url, or the address of --listen]
    #[arg(long, env = "SIDEBIKE_ADVERTISE", value_name = "URL")]
    advertise: Option<String>,
    /// PEM file of the authorities that signed the other servers' certificates [default: the system's]
    #[arg(long, env = "SIDEBIKE_ADVERTISE_CA", value_name = "FILE")]
    advertise_ca: Option<PathBuf>,
    /// Finished tasks to keep; the oldest are forgotten first
    #[arg(
        long,
        env = "SIDEBIKE_MAX_TASKS",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_tasks: usize,
    /// Unfinished executions; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_EXECUTIONS",
        value_name = "N",
        default_value_t = 100_000
    )]
    max_executions: usize,
    /// Known machines; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_MACHINES",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_machines: usize,
    /// New machines from one address with one token in 10 minutes; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_NEW_MACHINES",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_new_machines: usize,
    /// Schedules; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_SCHEDULES",
        value_name = "N",
        default_value_t = 1_000
    )]
    max_schedules: usize,
    /// File of schedules, a JSON object with one for each id; read at the start and on HUP [default: none]
    #[arg(long, env = "SIDEBIKE_SCHEDULES", value_name = "FILE")]
    schedules: Option<PathBuf>,
    /// Different patterns with waiting tasks; submits with another one are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_PATTERNS",
        value_name = "N",
        default_value_t = MAX_PATTERNS
    )]
    max_patterns: usize,
    /// Bytes of a task's machinePattern
    #[arg(
        long,
        env = "SIDEBIKE_MAX_PATTERN",
        value_name = "BYTES",
        default_value_t = MAX_PATTERN_BYTES
    )]
    max_pattern: usize,
    /// KiB of a compiled machinePattern
    ///
    /// In memory it takes about twice as much while tasks wait under it: with the defaults 250 MiB if all
    /// --max-patterns are as large as allowed. A larger pattern also takes longer to match.
    #[arg(
        long,
        env = "SIDEBIKE_MAX_COMPILED_PATTERN",
        value_name = "KIB",
        default_value_t = MAX_COMPILED_KIB
    )]
    max_compiled_pattern: usize,
    /// Bytes of a machine's label
    #[arg(
        long,
        env = "SIDEBIKE_MAX_LABEL",
        value_name = "BYTES",
        default_value_t = MAX_LABEL_BYTES
    )]
    max_label: usize,
    /// Bytes of a task's name
    #[arg(
        long,
        env = "SIDEBIKE_MAX_NAME",
        value_name = "BYTES",
        default_value_t = MAX_NAME_BYTES
    )]
    max_name: usize,
    /// MiB of output to keep; beyond it the oldest finished tasks are forgotten, then output is cut
    #[arg(
        long,
        env = "SIDEBIKE_MAX_OUTPUT",
        value_name = "MIB",
        default_value_t = 256
    )]
    max_output: usize,
    /// MiB of details (commands, input, variables) to keep; beyond it finished tasks are forgotten, then submits refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_DETAILS",
        value_name = "MIB",
        default_value_t = 128
    )]
    max_details: usize,
    /// Connections at once; the limit on open files may lower it
    #[arg(
        long,
        env = "SIDEBIKE_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_connections: usize,
    /// Connections at once from one address [default: no limit, a fleet may come through one proxy]
    #[arg(long, env = "SIDEBIKE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    max_connections_per_address: Option<usize>,
    /// Requests held at the same time (polls and waits); more are answered immediately
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HELD",
        value_name = "N",
        default_value_t = 11_000
    )]
    max_held: usize,
    /// MiB of large bodies and answers in flight; beyond it the slowest connections are closed
    #[arg(
        long,
        env = "SIDEBIKE_MAX_IN_FLIGHT",
        value_name = "MIB",
        default_value_t = 128
    )]
    max_in_flight: usize,
    /// KiB of a request's headers
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HEAD",
        value_name = "KIB",
        default_value_t = 16
    )]
    max_head: usize,
    /// Headers of a request
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HEADERS",
        value_name = "N",
        default_value_t = 64
    )]
    max_headers: usize,
    /// KiB of a request's path and query
    #[arg(
        long,
        env = "SIDEBIKE_MAX_TARGET",
        value_name = "KIB",
        default_value_t = 4
    )]
    max_target: usize,
    /// MiB of a request's body
    #[arg(
        long,
        env = "SIDEBIKE_MAX_BODY",
        value_name = "MIB",
        default_value_t = 4
    )]
    max_body: usize,
    /// How deep a body's JSON may be nested
    #[arg(
        long,
        env = "SIDEBIKE_MAX_JSON_DEPTH",
        value_name = "N",
        default_value_t = 32
    )]
    max_json_depth: usize,
    /// Send notifications where this regular expression matches, of scheme://host:port [default: nowhere]
    #[arg(long, env = "SIDEBIKE_WEBHOOK_ALLOW", value_name = "REGEX")]
    webhook_allow: Option<String>,
    /// File of the authorities that may vouch for who gets notifications, as PEM [default: those of the system]
    #[arg(long, env = "SIDEBIKE_WEBHOOK_CA", value_name = "FILE")]
    webhook_ca: Option<PathBuf>,
    /// The pause between two tries of a notification, for tests
    #[arg(long, value_name = "DURATION", hide = true)]
    webhook_pause: Option<String>,
    /// Longest time for a request to arrive, for a connection to be idle, for an answer to be read
    #[arg(
        long,
        env = "SIDEBIKE_MAX_REQUEST_TIME",
        value_name = "DURATION",
        default_value = "60s"
    )]
    max_request_time: String,
    /// Folder for the files of tasks [default: none, a file without a name in the temporary folder]
    #[arg(long, env = "SIDEBIKE_BLOBS", value_name = "DIR")]
    blobs: Option<PathBuf>,
    /// MiB of a file that is brought
    #[arg(
        long,
        env = "SIDEBIKE_MAX_BLOB",
        value_name = "MIB",
        default_value_t = 512
    )]
    max_blob: usize,
    /// MiB of all files; beyond it those that no task needs are removed, then more refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_BLOBS",
        value_name = "MIB",
        default_value_t = 4_096
    )]
    max_blobs: usize,
    /// Folder of binaries to hand out for other machines, named as sidebike-aarch64-linux
    #[arg(long, env = "SIDEBIKE_BINARIES", value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Who gets the program from /sidebike: token (whoever has one), or open (everybody)
    #[arg(
        long,
        env = "SIDEBIKE_HAND_OUT",
        value_name = "WHO",
        default_value = "token"
    )]
    hand_out: String,
    /// Accept the original's agents without a token if their label matches
    #[arg(long, env = "SIDEBIKE_ALLOW_LEGACY", value_name = "REGEX")]
    allow_legacy: Option<String>,
    /// The address under which browsers reach this server through a proxy
    #[arg(long, env = "SIDEBIKE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
    /// File for one JSON line per call that changes something [default: the log]
    #[arg(long, env = "SIDEBIKE_AUDIT", value_name = "FILE")]
    audit: Option<PathBuf>,
    /// PEM file of the certificate chain to serve https with
    #[arg(long, env = "SIDEBIKE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's key
    #[arg(long, env = "SIDEBIKE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// Where the audit log is written.
#[derive(Debug, Clone)]
pub enum AuditTarget {
    /// To the program's log.
    Log,
    /// To this file.
    File(PathBuf),
}

/// Checked settings of the server.
#[derive(Debug)]
#[allow(
    missing_docs,
    reason = "the flags of the same names are documented; sizes are in bytes"
)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub engine: Engine,
    pub db: Option<Database>,
    pub max_tasks: usize,
    pub max_executions: usize,
    pub max_machines: usize,
    pub max_new_machines: usize,
    pub max_schedules: usize,
    pub schedules: Option<PathBuf>,
    pub max_patterns: usize,
    pub texts: TextLimits,
    pub max_output_bytes: usize,
    pub max_detail_bytes: usize,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_held: usize,
    pub max_in_flight_bytes: usize,
    pub request: RequestLimits,
    pub max_json_depth: usize,
    pub max_request_time: TimeSpan,
    pub blobs: Option<PathBuf>,
    pub blob_limits: BlobLimits,
    pub binaries: Option<PathBuf>,
    pub hands_out_openly: bool,
    pub allow_legacy: Option<regex::Regex>,
    pub public_url: Option<Authority>,
    /// The URL itself, without a slash at its end.
    pub public_address: Option<String>,
    pub notify: NotifyPolicy,
    pub webhook_ca: Option<PathBuf>,
    pub audit: AuditTarget,
    pub tls: Option<CertificateFiles>,
}

impl ServerArgs {
    /// Checks the arguments. The error is one line for the user.
    pub fn checked(self) -> Result<ServerConfig, String> {
        let listen = self
            .listen
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .ok_or_else(|| {
                format!(
                    "--listen: expected ADDRESS:PORT such as 0.0.0.0:9410, got {:?}",
                    self.listen
                )
            })?;
        let engine = Engine::named(&self.engine).map_err(|why| format!("--engine: {why}"))?;
        let per_address = self.max_connections_per_address.unwrap_or(MAX_NUMBER);
        for (flag, value) in [
            ("--max-tasks", self.max_tasks),
            ("--max-executions", self.max_executions),
            ("--max-machines", self.max_machines),
            ("--max-new-machines", self.max_new_machines),
            ("--max-schedules", self.max_schedules),
            ("--max-patterns", self.max_patterns),
            ("--max-pattern", self.max_pattern),
            ("--max-compiled-pattern", self.max_compiled_pattern),
            ("--max-label", self.max_label),
            ("--max-name", self.max_name),
            ("--max-output", self.max_output),
            ("--max-details", self.max_details),
            ("--max-connections", self.max_connections),
            ("--max-connections-per-address", per_address),
            ("--max-held", self.max_held),
            ("--max-in-flight", self.max_in_flight),
            ("--max-head", self.max_head),
            ("--max-headers", self.max_headers),
            ("--max-target", self.max_target),
            ("--max-body", self.max_body),
            ("--max-json-depth", self.max_json_depth),
            ("--max-blob", self.max_blob),
            ("--max-blobs", self.max_blobs),
        ] {
            if value == 0 || value > MAX_NUMBER {
                return Err(format!(
                    "{flag}: expected a number from 1 to {MAX_NUMBER}, got {value}"
                ));
            }
        }
        let max_request_time = self.max_request_time.parse::<TimeSpan>();
        let max_request_time = max_request_time
            .ok()
            .filter(|duration| *duration >= TimeSpan::from_secs(1));
        let allow_legacy = self.allow_legacy.map(|pattern| {
            regex::Regex::new(&pattern).map_err(|why| {
                let why = wrong_regex(&pattern, &why);
                format!("--allow-legacy: expected a regular expression: {why}")
            })
        });
        let pause = self.webhook_pause.as_deref().map(|pause| {
            pause.parse::<TimeSpan>().map_err(|_| {
                format!("--webhook-pause: expected a duration such as 10ms, got {pause:?}")
            })
        });
        let allow = self.webhook_allow.as_deref().map(|pattern| {
            NotifyPolicy::allowing(pattern).map_err(|why| format!("--webhook-allow: {why}"))
        });
        let notify = NotifyPolicy {
            allow: allow.transpose()?,
            pause: pause.transpose()?,
        };
        let public_address = self.public_url.as_deref();
        let public_address = public_address.map(|url| url.trim_end_matches('/').to_owned());
        let public_url = self.public_url.map(|url| {
            Authority::of_url(&url).ok_or_else(|| {
                format!(
                    "--public-url: expected a URL such as https://sidebike.example, got {url:?}"
                )
            })
        });
        let tls = match (self.tls_cert, self.tls_key) {
            (None, None) => None,
            #[cfg(feature = "tiny_http")]
            (Some(_), Some(_)) if engine == Engine::TinyHttp => {
                return Err("--engine: tiny_http speaks no https; leave out --tls-cert".into());
            }
            (Some(certificates), Some(key)) => Some(CertificateFiles { certificates, key }),
            (Some(_), None) => return Err("--tls-cert: needs --tls-key, too".into()),
            (None, Some(_)) => return Err("--tls-key: needs --tls-cert, too".into()),
        };
        let flags = database::Flags {
            db: self.db,
            ca: self.db_ca,
            advertise_ca: self.advertise_ca,
            advertise: self.advertise,
        };
        let db = flags.checked(listen, tls.is_some(), public_address.as_deref())?;
        #[cfg(feature = "tiny_http")]
        if let (Engine::TinyHttp, Some(Database::Shared(_))) = (engine, &db) {
            return Err("--engine: tiny_http is for one server, not for --db postgres://…".into());
        }
        Ok(ServerConfig {
            listen,
            engine,
            db,
            max_tasks: self.max_tasks,
            max_executions: self.max_executions,
            max_machines: self.max_machines,
            max_new_machines: self.max_new_machines,
            max_schedules: self.max_schedules,
            schedules: self.schedules,
            max_patterns: self.max_patterns,
            texts: TextLimits {
                pattern: self.max_pattern,
                compiled: self.max_compiled_pattern << 10,
                label: self.max_label,
                name: self.max_name,
            },
            max_output_bytes: self.max_output << 20,
            max_detail_bytes: self.max_details << 20,
            max_connections: self.max_connections,
            max_connections_per_address: per_address,
            max_held: self.max_held,
            max_in_flight_bytes: self.max_in_flight << 20,
            request: RequestLimits {
                head_bytes: self.max_head << 10,
                headers: self.max_headers,
                target_bytes: self.max_target << 10,
                body_bytes: self.max_body << 20,
            },
            max_json_depth: self.max_json_depth,
            max_request_time: max_request_time.ok_or_else(|| {
                format!(
                    "--max-request-time: expected 1s or more, such as 60s, got {:?}",
                    self.max_request_time
                )
            })?,
            blobs: self.blobs,
            blob_limits: BlobLimits {
                one: (self.max_blob as u64) << 20,
                all: (self.max_blobs as u64) << 20,
            },
            binaries: self.binaries,
            hands_out_openly: match self.hand_out.as_str() {
                "token" => false,
                "open" => true,
                other => return Err(format!("--hand-out: expected token or open, got {other:?}")),
            },
            allow_legacy: allow_legacy.transpose()?,
            public_url: public_url.transpose()?,
            public_address,
            notify,
            webhook_ca: self.webhook_ca.filter(|file| !file.as_os_str().is_empty()),
            audit: self.audit.map_or(AuditTarget::Log, AuditTarget::File),
            tls,
        })
    }
}
