//! An HTTP server that answers as a test wants, faults included, and remembers
//! what it was asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long a server waits for a client, and a client for a server.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Names and values, in order.
pub type Headers = Vec<(String, String)>;

/// What a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

/// What a server does with the body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Closes the connection after so many bytes of the body.
    CutAfter(usize),
    /// Sends no more after so many bytes, but keeps the connection.
    StallAfter(usize),
    /// Reads the head of the request and closes the connection.
    NoAnswer,
    /// Says that the body has so many bytes.
    ClaimLength(u64),
    /// Says nothing of the length: a chunked body.
    Chunked,
    /// Says nothing of the length: the body ends with the connection.
    UntilClose,
    /// Sends the body over and over, chunked.
    Endless,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub fault: Fault,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            fault: Fault::None,
        }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers
            .retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on a port of its own. It ends with its value.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    /// Connections on which a client no longer listens.
    abandoned: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            abandoned: Arc::default(),
            stopping: Arc::default(),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen, stopping) = (Arc::clone(&server.seen), Arc::clone(&server.stopping));
        let abandoned = Arc::clone(&server.abandoned);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                let (abandoned, stopping) = (Arc::clone(&abandoned), Arc::clone(&stopping));
                thread::spawn(move || {
                    if serve(stream, &*handler, &seen, &stopping).is_err() {
                        abandoned.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests there were whose path has this in it.
    pub fn count(&self, part: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|r| r.target.contains(part)).count()
    }

    pub fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    handler: &Handler,
    seen: &Mutex<Vec<Request>>,
    stopping: &AtomicBool,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // The body does not wait for the head to be acknowledged.
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    // What is no HTTP, such as the beginning of TLS, ends the connection.
    while let Some(request) = read_request(&mut reader).unwrap_or(None) {
        seen.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        let goes_on = write_reply(&mut writer, &request, &reply, stopping)?;
        if !goes_on || stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    // A greeting of TLS need not have the end of a line that is waited for below.
    if !reader
        .fill_buf()?
        .first()
        .is_some_and(u8::is_ascii_uppercase)
    {
        return Ok(None);
    }
    let Some((first, headers)) = read_head(reader)? else {
        return Ok(None);
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|v| v.parse().ok());
    let is_chunked = request.header("transfer-encoding").is_some();
    request.body = read_body(reader, length, is_chunked)?;
    Ok(Some(request))
}

/// The first line and the headers.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let mut line = || -> io::Result<String> {
        let mut line = Vec::new();
        reader
            .by_ref()
            .take(16 << 10)
            .read_until(b'\n', &mut line)?;
        let line = String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(Some((first, headers))),
        }
    }
}

pub fn read_body(
    reader: &mut impl BufRead,
    length: Option<u64>,
    is_chunked: bool,
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = length {
        reader.take(length).read_to_end(&mut body)?;
        if (body.len() as u64) < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    } else if is_chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size =
                u64::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            reader.by_ref().take(size).read_to_end(&mut body)?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(body)
}

/// Writes an answer; whether the connection can have another one.
fn write_reply(
    writer: &mut TcpStream,
    request: &Request,
    reply: &Reply,
    stopping: &AtomicBool,
) -> io::Result<bool> {
    if reply.fault == Fault::NoAnswer {
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {} Said\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let is_chunked = matches!(reply.fault, Fault::Chunked | Fault::Endless);
    let length = match reply.fault {
        Fault::ClaimLength(length) => length,
        _ => reply.body.len() as u64,
    };
    if is_chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if reply.fault != Fault::UntilClose && reply.header("content-length").is_none() {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    writer.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let body = reply.body.as_slice();
    match reply.fault {
        Fault::None => writer.write_all(body).map(|()| true),
        Fault::CutAfter(count) => writer
            .write_all(&body[..count.min(body.len())])
            .map(|()| false),
        Fault::StallAfter(count) => {
            writer.write_all(&body[..count.min(body.len())])?;
            for _ in 0..100 {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
            Ok(false)
        }
        Fault::UntilClose | Fault::ClaimLength(_) | Fault::NoAnswer => {
            writer.write_all(body).map(|()| false)
        }
        Fault::Chunked => {
            write_chunk(writer, body)?;
            writer.write_all(b"0\r\n\r\n").map(|()| true)
        }
        Fault::Endless => {
            while !stopping.load(Ordering::SeqCst) {
                write_chunk(writer, body)?;
            }
            Ok(false)
        }
    }
}

fn write_chunk(writer: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
    writer.write_all(bytes)?;
    writer.write_all(b"\r\n")
}
