//! A proxy that does harm to what it passes on.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;

use crate::http_server::{PATIENCE, Reply, Request, Server, read_body, read_head};

/// What befalls one answer.
pub type Mishap = fn(Reply) -> Reply;

/// What another server answers to a request: the heart of a proxy.
pub fn forward(to: SocketAddr, request: &Request) -> Reply {
    let exchange = || -> io::Result<Reply> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
        for (name, value) in &request.headers {
            let is_ours = ["connection", "content-length", "transfer-encoding"]
                .iter()
                .any(|ours| name.eq_ignore_ascii_case(ours));
            if !is_ours {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str(&format!(
            "Connection: close\r\nContent-Length: {}\r\n\r\n",
            request.body.len()
        ));
        (&stream).write_all(head.as_bytes())?;
        (&stream).write_all(&request.body)?;
        let mut reader = BufReader::new(stream);
        let (first, headers) = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut reply = Reply::new(status.ok_or(io::ErrorKind::InvalidData)?, "");
        reply.headers = headers;
        let is_chunked = reply.header("transfer-encoding").is_some();
        if request.method != "HEAD" {
            let length = reply.header("content-length").and_then(|v| v.parse().ok());
            reply.body = read_body(&mut reader, length, is_chunked)?;
            reply
                .headers
                .retain(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
        }
        let hop = ["transfer-encoding", "connection"];
        reply
            .headers
            .retain(|(name, _)| !hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)));
        Ok(reply)
    };
    exchange().unwrap_or_else(|error| Reply::new(502, error.to_string()))
}

/// A proxy in front of a registry. `faults` are what it does to the answers to
/// requests for blobs, one after the other; then it does nothing to them.
pub fn faulty_proxy(to: SocketAddr, faults: impl IntoIterator<Item = Mishap>) -> Server {
    let faults: Mutex<VecDeque<Mishap>> = Mutex::new(faults.into_iter().collect());
    Server::start(move |request| {
        let reply = forward(to, request);
        let is_blob = request.method == "GET" && request.path().contains("/blobs/");
        let fault = is_blob
            .then(|| faults.lock().unwrap().pop_front())
            .flatten();
        match fault {
            Some(fault) => fault(reply),
            None => reply,
        }
    })
}
