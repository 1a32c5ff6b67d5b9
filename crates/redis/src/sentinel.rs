//! Which server is the primary now, by the Sentinels that watch it.
//!
//! They are asked anew for each connection, one after the other until one knows, as Redis advises clients of Sentinel.
//! It opens no connection to the primary itself, and does not check that the server named is one: a connection to a
//! replica is found out by its lineage.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, RedisResult,
    TlsCertificates,
};

use super::faults::{is_denied, is_right};

/// Sentinels, and the name under which they watch the primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    pub(super) name: String,
    pub(super) nodes: Vec<ConnectionInfo>,
    /// Files of TLS, if Sentinels speak it.
    pub(super) tls: Option<TlsCertificates>,
}

impl Sentinels {
    /// Host and port of the primary; an error says what each Sentinel answered.
    pub(super) async fn primary(&self, limit: Duration) -> Result<(String, u16), String> {
        let mut answers = Vec::new();
        for node in &self.nodes {
            let reason = match tokio::time::timeout(limit, self.ask(node, limit)).await {
                Ok(Ok(Some(found))) => return Ok(found),
                Ok(Ok(None)) => format!("it watches no primary named {:?}", self.name),
                Ok(Err(error)) => reason(&error),
                Err(_) => format!("no answer within {limit:?}"),
            };
            answers.push(format!("{}: {reason}", node.addr()));
        }
        Err(format!(
            "redis.url: no Sentinel names the primary: {}",
            answers.join("; ")
        ))
    }

    async fn ask(
        &self,
        node: &ConnectionInfo,
        limit: Duration,
    ) -> RedisResult<Option<(String, u16)>> {
        let client = match &self.tls {
            Some(files) => Client::build_with_tls(node.clone(), files.clone())?,
            None => Client::open(node.clone())?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let mut conn = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        question.query_async(&mut conn).await
    }
}

fn reason(error: &RedisError) -> String {
    if is_denied(error) {
        format!(
            "{error}; it is asked with redis.sentinel_username and redis.sentinel_password_file"
        )
    } else if is_right(error) {
        format!("{error}; redis.sentinel_username needs +sentinel|get-master-addr-by-name")
    } else if error.to_string().contains("unknown command") {
        "it is a Redis and no Sentinel; Sentinels have a port of their own, usually 26379".into()
    } else {
        error.to_string()
    }
}

/// The same settings of a connection for another address.
pub(super) fn at(info: &ConnectionInfo, (host, port): (String, u16)) -> ConnectionInfo {
    let addr = match info.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(addr)
}
