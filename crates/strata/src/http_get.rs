//! `GET` of a page of a node: HTTP/1.1 on the node's one port.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest answer that is read: pages of a node are far smaller.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Status and body of a page.
///
/// # Errors
/// One line that says why there is no answer, after at most `time`.
pub async fn http_get(address: &str, path: &str, time: Duration) -> Result<(u16, String), String> {
    match tokio::time::timeout(time, exchange(address, path)).await {
        Ok(Ok(answer)) => parse(&answer).ok_or_else(|| "the answer is no HTTP".to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {time:?}")),
    }
}

async fn exchange(address: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(answer)
}

/// A node sends its pages whole, with their length; they are never chunked.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some((status.parse().ok()?, body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_found() {
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some((404, "{}".into())));
        for wrong in [&b""[..], b"SSH-2.0\r\n\r\n", b"HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(parse(wrong), None);
        }
    }
}
