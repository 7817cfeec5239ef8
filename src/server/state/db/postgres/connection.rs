//! One session with PostgreSQL: start, authentication, statements. The only place that names `postgres_protocol`.

use super::socket::{self, Stream};
use super::statement::{Row, Statement};
use super::url::{Host, Url};
use crate::tls::ClientTls;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

/// The longest time without an answer while a session begins: the server has nothing to wait for.
const START_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest message while a session begins, in bytes. What answers may be no PostgreSQL at all.
const MAX_START_MESSAGE: i32 = 64 << 10;
/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 << 10;
/// The answer to the question whether the server speaks TLS.
const SPEAKS_TLS: u8 = b'S';
/// The code of an error of the server: a lock was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Why a statement failed.
#[derive(Debug)]
pub enum Failure {
    /// The server said so: the code, and the words.
    Refused(String, String),
    /// The connection broke, or nothing came.
    Broken(String),
}

impl Failure {
    /// Whether a lock was not to be had in time.
    pub fn is_locked_out(&self) -> bool {
        matches!(self, Failure::Refused(code, _) if code == LOCK_NOT_AVAILABLE)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(_, words) | Failure::Broken(words) => f.write_str(words),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(why: io::Error) -> Self {
        Failure::Broken(match why.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".into(),
            io::ErrorKind::UnexpectedEof => "it has closed the connection".into(),
            _ => format!("the connection is broken: {why}"),
        })
    }
}

/// A session. After a [`Failure`] it must not be used any more.
pub struct Connection {
    stream: Stream,
    input: BytesMut,
    chunk: Box<[u8]>,
    /// The longest message that is accepted.
    max_message: i32,
}

impl Connection {
    /// Begins a session with one server of the database. The error is for people; it names neither the server nor the
    /// password.
    pub fn open(
        url: &Url,
        host: &Host,
        password: Option<&str>,
        tls: Option<&ClientTls>,
    ) -> Result<Connection, String> {
        let socket = socket::connect(host)?;
        let mut connection = Connection {
            stream: Stream::Plain(socket),
            input: BytesMut::new(),
            chunk: vec![0; READ_BYTES].into(),
            max_message: MAX_START_MESSAGE,
        };
        let text = |why: Failure| why.to_string();
        connection.limit(Some(START_TIMEOUT)).map_err(text)?;
        if let Some(tls) = tls {
            connection = connection.encrypted(tls)?;
        }
        connection.start(url, password).map_err(text)?;
        connection.max_message = i32::MAX;
        Ok(connection)
    }

    fn limit(&self, limit: Option<Duration>) -> Result<(), Failure> {
        Ok(self.stream.set_timeout(limit)?)
    }

    fn encrypted(mut self, tls: &ClientTls) -> Result<Self, String> {
        let mut output = BytesMut::new();
        frontend::ssl_request(&mut output);
        let mut answer = [0];
        // One byte, and nothing behind it: what came before the encryption could be anybody's.
        let asked =
            { self.stream.write_all(&output) }.and_then(|()| self.stream.read_exact(&mut answer));
        asked.map_err(|why| Failure::from(why).to_string())?;
        let Stream::Plain(socket) = self.stream else {
            return Ok(self);
        };
        if answer != [SPEAKS_TLS] {
            return Err("it does not speak TLS: set `ssl = on` in its postgresql.conf, or write `?sslmode=disable` behind the URL to send everything unencrypted".into());
        }
        self.stream = Stream::encrypted(socket, tls)?;
        Ok(self)
    }

    fn start(&mut self, url: &Url, password: Option<&str>) -> Result<(), Failure> {
        let mut settings = vec![
            ("user", url.user.as_str()),
            ("database", url.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", "sidebike"),
        ];
        if let Some(options) = &url.options {
            settings.push(("options", options.as_str()));
        }
        let mut output = BytesMut::new();
        frontend::startup_message(settings, &mut output)?;
        self.send(&output)?;
        let password = || {
            password.map(str::as_bytes).ok_or_else(|| {
                Failure::Broken(format!(
                    "it asks for the password of {}: set SIDEBIKE_DB_PASSWORD or SIDEBIKE_DB_PASSWORD_FILE, or write it into the URL",
                    url.user
                ))
            })
        };
        let mut scram: Option<ScramSha256> = None;
        let out_of_order = || Failure::Broken("its authentication is out of order".into());
        loop {
            output.clear();
            match self.message()? {
                Message::AuthenticationOk if scram.is_some() => return Err(out_of_order()),
                Message::AuthenticationCleartextPassword if self.stream.is_tls() => {
                    frontend::password_message(password()?, &mut output)?;
                }
                Message::AuthenticationCleartextPassword => {
                    return Err(Failure::Broken(
                        "it asks for the password unencrypted; set `password_encryption = scram-sha-256` and the password anew, or use TLS".into(),
                    ));
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(url.user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut output)?;
                }
                Message::AuthenticationSasl(body) => {
                    if !body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256))? {
                        return Err(Failure::Broken("it offers no SCRAM-SHA-256".into()));
                    }
                    let begun = ScramSha256::new(password()?, ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut output)?;
                    scram = Some(begun);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(out_of_order)?;
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut output)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let mut scram = scram.take().ok_or_else(out_of_order)?;
                    scram.finish(body.data()).map_err(|_| {
                        Failure::Broken("it does not know the password itself: it is not the server that it claims to be".into())
                    })?;
                }
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                Message::ErrorResponse(body) => return Err(refusal(body.fields())),
                Message::ReadyForQuery(_) => return Ok(()),
                _ => {
                    return Err(Failure::Broken(
                        "it asks for an authentication other than scram-sha-256, md5 and password"
                            .into(),
                    ));
                }
            }
            if !output.is_empty() {
                self.send(&output)?;
            }
        }
    }

    /// Whether something has come that nobody asked for, such as the end.
    pub fn is_stale(&self) -> bool {
        !self.input.is_empty() || self.stream.is_stale()
    }

    /// Runs one statement in a transaction of its own, and gives each row to `row`. The answer is a warning of the
    /// server, if there was one: a commit whose wait for a standby was canceled ends with one. It has come with the
    /// last message, which is sent after the commit.
    pub fn run(
        &mut self,
        statement: &Statement,
        limit: Option<Duration>,
        row: &mut dyn FnMut(Row<'_>),
    ) -> Result<Option<String>, Failure> {
        let mut output = BytesMut::new();
        let types = statement.parameters.iter().map(|(oid, _)| *oid);
        frontend::parse("", &statement.sql, types, &mut output)?;
        let values = statement.parameters.iter().map(|(_, value)| value);
        const BINARY: i16 = 1;
        let bound = frontend::bind(
            "",
            "",
            [BINARY],
            values,
            |value, to| {
                let Some(value) = value else {
                    return Ok(IsNull::Yes);
                };
                to.extend_from_slice(value);
                Ok(IsNull::No)
            },
            [BINARY],
            &mut output,
        );
        bound.map_err(|_| Failure::Broken("the statement is too long".into()))?;
        frontend::execute("", 0, &mut output)?;
        frontend::sync(&mut output);
        self.limit(limit)?;
        self.send(&output)?;
        drop(output);
        self.answer(&mut |body| row(Row::new(body)))
    }

    /// The same, where a row may not be as it was asked for: the first such ends the reading.
    pub fn rows(
        &mut self,
        statement: &Statement,
        limit: Option<Duration>,
        read: &mut dyn FnMut(&mut Row<'_>) -> Result<(), String>,
    ) -> Result<Option<String>, Failure> {
        let mut wrong = None;
        let warning = self.run(statement, limit, &mut |mut row| {
            if wrong.is_none() {
                wrong = read(&mut row).err();
            }
        })?;
        wrong.map_or(Ok(warning), |why| Err(Failure::Broken(why)))
    }

    /// Runs several statements without parameters in one message.
    pub fn run_script(&mut self, sql: &str, limit: Option<Duration>) -> Result<(), Failure> {
        let mut output = BytesMut::new();
        frontend::query(sql, &mut output)?;
        self.limit(limit)?;
        self.send(&output)?;
        self.answer(&mut |_| ())?;
        Ok(())
    }

    fn answer(&mut self, row: &mut dyn FnMut(&[u8])) -> Result<Option<String>, Failure> {
        let mut warning = None;
        loop {
            match self.message()? {
                Message::DataRow(body) => row(body.buffer()),
                Message::NoticeResponse(body) => {
                    let notice = Notice::read(body.fields());
                    if notice.is_warning {
                        warning = Some(notice.words());
                    }
                }
                Message::ErrorResponse(body) => return Err(refusal(body.fields())),
                Message::ReadyForQuery(_) => return Ok(warning),
                _ => {}
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    fn message(&mut self) -> Result<Message, Failure> {
        let no_postgres = || Failure::Broken("what answers is not PostgreSQL".into());
        loop {
            if let Some(header) = Header::parse(&self.input).map_err(|_| no_postgres())? {
                if header.len() > self.max_message {
                    return Err(no_postgres());
                }
                if let Some(message) = Message::parse(&mut self.input).map_err(|_| no_postgres())? {
                    return Ok(message);
                }
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => self.input.extend_from_slice(&self.chunk[..n]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why.into()),
            }
        }
    }
}

/// What the server says of an error, or beside an answer.
#[derive(Default)]
struct Notice {
    is_warning: bool,
    code: String,
    message: String,
    detail: Option<String>,
}

impl Notice {
    fn read(mut fields: ErrorFields<'_>) -> Notice {
        let mut notice = Notice::default();
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                // Not translated, unlike the severity in `S`.
                b'V' => notice.is_warning = value == "WARNING",
                b'C' => notice.code = value,
                b'M' => notice.message = value,
                b'D' => notice.detail = Some(value),
                _ => {}
            }
        }
        notice
    }

    /// In one line.
    fn words(&self) -> String {
        let words = match &self.detail {
            Some(detail) => format!("{} ({detail})", self.message),
            None => self.message.clone(),
        };
        words.replace('\n', " ")
    }
}

fn refusal(fields: ErrorFields<'_>) -> Failure {
    let notice = Notice::read(fields);
    Failure::Refused(notice.code.clone(), notice.words())
}
