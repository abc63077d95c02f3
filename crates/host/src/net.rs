//! TCP: tokio's, or the simulator's.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

#[cfg(feature = "sim")]
use crate::sim;

/// Accepts connections.
pub enum Listener {
    /// The operating system's.
    Tcp(TcpListener),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(sim::SimListener),
}

impl Listener {
    #[expect(clippy::disallowed_methods, reason = "the one door to the sockets")]
    pub(crate) async fn bind(addr: &str) -> io::Result<Self> {
        TcpListener::bind(addr).await.map(Self::Tcp)
    }

    /// The next connection, Nagle's algorithm off.
    pub async fn accept(&self) -> io::Result<(Conn, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Conn::Tcp(stream), peer))
            }
            #[cfg(feature = "sim")]
            Self::Sim(listener) => listener.accept().await.map(|(conn, peer)| (Conn::Sim(conn), peer)),
        }
    }

    /// Where it listens; with port 0 asked for, the one that was given.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            #[cfg(feature = "sim")]
            Self::Sim(listener) => Ok(listener.local_addr()),
        }
    }
}

/// One connection.
pub enum Conn {
    /// The operating system's.
    Tcp(TcpStream),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(sim::SimConn),
}

impl Conn {
    #[expect(clippy::disallowed_methods, reason = "the one door to the sockets")]
    pub(crate) async fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Halves that two tasks can own. Dropping the write half sends the end of the stream.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            #[cfg(feature = "sim")]
            Self::Sim(conn) => {
                let (read, write) = conn.into_split();
                (ReadHalf::Sim(read), WriteHalf::Sim(write))
            }
        }
    }
}

/// The half that is read.
pub enum ReadHalf {
    /// The operating system's.
    Tcp(OwnedReadHalf),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(sim::SimReadHalf),
}

/// The half that is written.
pub enum WriteHalf {
    /// The operating system's.
    Tcp(OwnedWriteHalf),
    /// The simulator's.
    #[cfg(feature = "sim")]
    Sim(sim::SimWriteHalf),
}

macro_rules! forward {
    ($on:expr, $inner:ident => $call:expr) => {
        match $on.get_mut() {
            Self::Tcp($inner) => $call,
            #[cfg(feature = "sim")]
            Self::Sim($inner) => $call,
        }
    };
}

macro_rules! forward_read {
    ($type:ty) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                forward!(self, inner => Pin::new(inner).poll_read(cx, buf))
            }
        }
    };
}

macro_rules! forward_write {
    ($type:ty) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                forward!(self, inner => Pin::new(inner).poll_write(cx, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                forward!(self, inner => Pin::new(inner).poll_write_vectored(cx, bufs))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                forward!(self, inner => Pin::new(inner).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                forward!(self, inner => Pin::new(inner).poll_shutdown(cx))
            }
        }
    };
}

forward_read!(Conn);
forward_read!(ReadHalf);
forward_write!(Conn);
forward_write!(WriteHalf);
