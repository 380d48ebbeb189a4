//! Looking up the addresses of names.

use std::thread::{Builder, JoinHandle};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::unversioned::transport::time::Duration;

/// The usual lookup. Its time limit takes a thread, without which it would end the process; where none
/// can be had, the limit is that of the system.
#[derive(Debug, Default)]
pub(super) struct Lookup(DefaultResolver);

impl Resolver for Lookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        mut timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let probe = Builder::new().name("resolver".to_owned()).spawn(|| ());
        if probe.map(JoinHandle::join).is_err() {
            timeout.after = Duration::NotHappening;
        }
        self.0.resolve(uri, config, timeout)
    }
}
