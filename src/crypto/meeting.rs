//! Handshakes in tests, between rustls on both sides and without a network.

use std::ops::DerefMut;
use std::sync::Arc;

use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, Error, HandshakeKind, ServerConfig,
    ServerConnection,
};

/// How a handshake ends, for the side that refuses it where one does.
pub(super) fn meet(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<HandshakeKind, Error> {
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let name = "server.test".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    for _ in 0..4 {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok(server.handshake_kind().expect("it is done"))
}

/// Hands over what `from` has to say.
fn pass<A, B>(
    from: &mut impl DerefMut<Target = ConnectionCommon<A>>,
    to: &mut impl DerefMut<Target = ConnectionCommon<B>>,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}
