//! A round trip over loopback on our runtime, both drivers, beside tokio and tokio-uring.
//!
//! One thread echoes, the other asks: `CONNECTIONS` in turn, one small message each. What is timed is
//! a whole sweep, so wake-ups and batching count as they do in the gateway.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ringgate::io::{Spawn, Stream};
use ringgate::runtime::{Backend, Config, Runtime};

const CONNECTIONS: usize = 64;
const MESSAGE: &[u8] = &[7; 128];

/// Echoes on every connection to the socket, for ever.
type Serve = fn(TcpListener);

fn echo(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("echo");
    group.measurement_time(Duration::from_secs(5));
    let servers: [(&str, Serve); 4] = [
        ("ringgate io_uring", |listener| ours(Backend::IoUring, listener)),
        ("ringgate epoll", |listener| ours(Backend::Epoll, listener)),
        ("tokio", tokio),
        ("tokio-uring", tokio_uring),
    ];
    for (name, serve) in servers {
        let mut clients = clients(serve);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|sweeps| {
                let start = Instant::now();
                (0..sweeps).for_each(|_| sweep(&mut clients));
                start.elapsed()
            });
        });
    }
    group.finish();
}

/// Starts `serve` on a thread, which ends with the process, and connects to it.
fn clients(serve: Serve) -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || serve(listener));
    let connect = |_| {
        let client = TcpStream::connect(address).expect("the server listens");
        client.set_nodelay(true).expect("a TCP socket");
        client
    };
    (0..CONNECTIONS).map(connect).collect()
}

/// Asks on every connection, then reads every answer.
fn sweep(clients: &mut [TcpStream]) {
    for client in &mut *clients {
        client.write_all(MESSAGE).expect("the server reads");
    }
    let mut answer = [0; MESSAGE.len()];
    for client in clients {
        client.read_exact(&mut answer).expect("the server answers");
    }
}

fn ours(backend: Backend, listener: TcpListener) {
    let config = Config { backend, ..Config::default() };
    let Ok(runtime) = Runtime::new(&config) else {
        return eprintln!("skipped: the kernel denies {backend:?}");
    };
    let handle = runtime.handle();
    runtime.block_on(async move {
        let mut listener = handle.listen(listener).expect("a listening socket");
        while let Ok(accepted) = listener.accept().await {
            handle.spawn(echo_on(accepted.open().expect("room for a connection")));
        }
    });
}

async fn echo_on(mut stream: impl Stream) {
    std::future::poll_fn(|cx| {
        while let Ok(lent @ [_, ..]) = std::task::ready!(stream.poll_fill(cx)) {
            let bytes = lent.to_vec();
            stream.consume(bytes.len());
            if stream.write(&[IoSlice::new(&bytes)]).is_err() {
                break;
            }
        }
        std::task::Poll::Ready(())
    })
    .await;
}

fn tokio(listener: TcpListener) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn tokio_uring(listener: TcpListener) {
    tokio_uring::start(async move {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        while let Ok((stream, _)) = listener.accept().await {
            tokio_uring::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let (read, back) = stream.read(buffer).await;
                    let Ok(n @ 1..) = read else { break };
                    let (written, back) = stream.write_all(back[..n].to_vec()).await;
                    if written.is_err() {
                        break;
                    }
                    buffer = back;
                    buffer.resize(4096, 0);
                }
            });
        }
    });
}

criterion_group!(benches, echo);
criterion_main!(benches);
