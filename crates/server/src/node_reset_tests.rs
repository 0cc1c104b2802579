//! Calls that clients give up before the node has looked at them, as they do while it stands still.

use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// POST, http and the path `/`, as places in HPACK's table (RFC 7541, appendix A).
const HEAD: [u8; 3] = [0x83, 0x86, 0x84];

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Kind and stream of the next frame.
async fn next(socket: &mut TcpStream) -> (u8, u32) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    socket.read_exact(&mut payload).await.unwrap();
    (
        head[3],
        u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
    )
}

/// A node that stood still finds all at once what came meanwhile. Were the connection given up for it,
/// all other calls on it would be lost, too.
#[tokio::test]
async fn calls_that_were_given_up_meanwhile_cost_no_connection() {
    let served = Served::start().await;
    let mut socket = TcpStream::connect(&served.address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let calls = 500;
    for call in 0..calls {
        let stream = 2 * call + 1;
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &HEAD));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let last = 2 * calls + 1;
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, last, &HEAD));
    socket.write_all(&bytes).await.unwrap();
    let answered = async {
        loop {
            let (kind, stream) = next(&mut socket).await;
            assert_ne!(kind, GOAWAY, "the connection was given up");
            if (kind, stream) == (HEADERS, last) {
                break;
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("an answer");
}
