//! Opens connections: to a single Redis, to the primary that Sentinels name, or to a Redis Cluster; and sends pipelines.
//!
//! It keeps nothing and judges no error; the link does.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, Pipeline, RedisResult, TlsCertificates, Value,
};

use super::sentinel::{self, Sentinels};
use super::settings::{RedisSettings, TargetKind};
use crate::metrics as measures;
use nearshore_core::ports::store::Error;

/// Commands of one pipeline. The next pipeline waits for its answers, so that one stays far below the response
/// timeout and memory is bounded.
pub(super) const PIPELINE_MAX: usize = 512;

/// Host and port of a server.
pub(super) type Place = (String, u16);

/// Makes connections by the files that were read when it was made.
pub(super) enum Client {
    Single(Single),
    Sentinel(Sentinels, Single),
    Cluster(ClusterClient),
}

/// How to connect to one server.
pub(super) struct Single {
    info: ConnectionInfo,
    tls: Option<TlsCertificates>,
    connect_max: Duration,
    config: AsyncConnectionConfig,
}

#[derive(Clone)]
pub(super) enum Conn {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Client {
    /// Reads the files of the settings. The first error is about them, the second one of redis-rs.
    pub(super) fn new(
        settings: &RedisSettings,
        (connect_max, response_max): (Duration, Duration),
    ) -> Result<RedisResult<Self>, Error> {
        let mut found = settings.target()?;
        if let TargetKind::Cluster = found.kind {
            let mut client = ClusterClientBuilder::new(found.nodes)
                .connection_timeout(connect_max)
                .response_timeout(response_max)
                .tcp_settings(settings.tcp())
                .retries(3);
            if let Some(files) = found.tls {
                client = client.certs(files);
            }
            return Ok(client.build().map(Self::Cluster));
        }
        let single = Single {
            info: found.nodes.swap_remove(0),
            tls: found.tls,
            connect_max,
            config: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(connect_max))
                .set_response_timeout(Some(response_max))
                .set_pipeline_buffer_size(PIPELINE_MAX),
        };
        let client = single.client(None).map(drop);
        Ok(client.map(|()| match found.kind {
            TargetKind::Sentinel(sentinels) => Self::Sentinel(sentinels, single),
            _ => Self::Single(single),
        }))
    }

    /// The primary that Sentinels name now; an error says what each of them answered.
    pub(super) async fn primary(&self) -> Result<Option<Place>, String> {
        match self {
            Self::Sentinel(sentinels, single) => {
                sentinels.primary(single.connect_max).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Opens a connection, to `primary` if Sentinels named one.
    pub(super) async fn open(&self, primary: Option<&Place>) -> RedisResult<Conn> {
        match self {
            Self::Single(single) | Self::Sentinel(_, single) => {
                let client = single.client(primary)?;
                let conn = client.get_multiplexed_async_connection_with_config(&single.config);
                conn.await.map(Conn::Single)
            }
            Self::Cluster(client) => client.get_async_connection().await.map(Conn::Cluster),
        }
    }
}

impl Single {
    fn client(&self, place: Option<&Place>) -> RedisResult<redis::Client> {
        let info = match place {
            Some(place) => sentinel::at(&self.info, place.clone()),
            None => self.info.clone(),
        };
        match &self.tls {
            Some(files) => redis::Client::build_with_tls(info, files.clone()),
            None => redis::Client::open(info),
        }
    }
}

pub(super) fn pipeline(cmds: &[Cmd]) -> Pipeline {
    let mut pipe = Pipeline::with_capacity(cmds.len());
    pipe.ignore_errors();
    for cmd in cmds {
        pipe.add_command(cmd.clone());
    }
    pipe
}

pub(super) async fn query(
    conn: impl Into<Conn>,
    pipe: Pipeline,
) -> RedisResult<Vec<RedisResult<Value>>> {
    measures::round_trips(1);
    match conn.into() {
        Conn::Single(mut conn) => pipe.query_async(&mut conn).await,
        Conn::Cluster(mut conn) => pipe.query_async(&mut conn).await,
    }
}

impl From<MultiplexedConnection> for Conn {
    fn from(conn: MultiplexedConnection) -> Self {
        Self::Single(conn)
    }
}

impl From<ClusterConnection> for Conn {
    fn from(conn: ClusterConnection) -> Self {
        Self::Cluster(conn)
    }
}

/// Loads scripts, in a cluster on every primary.
pub(super) async fn load(conn: Conn, loads: Vec<Cmd>) -> RedisResult<()> {
    match conn {
        Conn::Single(_) => {
            let answers = query(conn, pipeline(&loads)).await?;
            answers.into_iter().try_for_each(|answer| answer.map(drop))
        }
        Conn::Cluster(mut conn) => {
            for load in loads {
                let everywhere =
                    RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                conn.route_command(load, everywhere).await?;
            }
            Ok(())
        }
    }
}
