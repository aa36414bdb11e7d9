//! What instances do to each other and outlive: a crowd taken over, a log that is flooded, processors that are wanted.

use std::time::{Duration, Instant};

use cfc_runtime::InstanceType;

use crate::measure::{cpu, launcher_pid};
use crate::{Bench, HOLD, Outcome, PORT, ask, at};

impl Bench {
    /// Leaves `count` instances behind.
    pub async fn crowd(&self, count: usize) -> Outcome<()> {
        for i in 0..count {
            self.start(&format!("bench-{i}")).await?;
        }
        Ok(())
    }

    /// Takes `count` instances over: the time until all are known, and until each has answered.
    pub async fn adopt(&self, count: usize) -> Outcome<()> {
        println!("adopted {}", self.opened.elapsed().as_micros());
        let live = self.runtime.list().iter().filter(|view| view.phase.is_live()).count();
        if live != count {
            return Err(format!("{live} of {count} instances live").into());
        }
        for i in 0..count {
            ask(self.runtime.connect(&format!("bench-{i}"), PORT, HOLD).await?).await?;
        }
        println!("answered {}", self.opened.elapsed().as_micros());
        self.runtime.stop_all(Duration::ZERO).await;
        Ok(())
    }

    /// `count` answers of an instance, one after another, first alone and then beside one that writes without end.
    pub async fn flood(&self, count: usize) -> Outcome<()> {
        self.start("neighbour").await?;
        self.answers("alone_", count).await?;
        self.create("floods", Some(vec!["flood".to_string()])).await?;
        self.runtime.start("floods").await?;
        let launcher = launcher_pid();
        let (begin, before, own) = (Instant::now(), cpu(Some(launcher))?, cpu(None)?);
        self.answers("beside_", count).await?;
        let elapsed = begin.elapsed().as_micros() as u64;
        let permille = |used: Duration| used.as_micros() as u64 * 1000 / elapsed.max(1);
        println!("launcher_permille {}", permille(cpu(Some(launcher))?.saturating_sub(before)));
        println!("runtime_permille {}", permille(cpu(None)?.saturating_sub(own)));
        self.runtime.stop_all(Duration::ZERO).await;
        Ok(())
    }

    async fn answers(&self, prefix: &str, count: usize) -> Outcome<()> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begin = Instant::now();
            ask(self.runtime.connect("neighbour", PORT, HOLD).await?).await?;
            times.push(begin.elapsed().as_micros() as u64);
        }
        times.sort_unstable();
        println!("{prefix}p50 {}", at(&times, 0.5));
        println!("{prefix}p99 {}", at(&times, 0.99));
        Ok(())
    }

    /// What one instance of each of the small types gets of the processor when it takes all it can, in thousandths of what
    /// its type says.
    pub async fn limits(&self, seconds: usize) -> Outcome<()> {
        for name in ["lite", "basic", "standard-1"] {
            let kind = InstanceType::named(name)?;
            self.application(name, kind, false);
            self.create_of(name, name, Some(vec!["burn".to_string()])).await?;
            self.runtime.start(name).await?;
            // A limit lets a period's worth through at first.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (begin, before) = (Instant::now(), self.used(name).await?);
            tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
            let used = self.used(name).await?.saturating_sub(before);
            let granted = begin.elapsed().as_micros() as u64 * kind.micro_cpus / 1_000_000;
            println!("{name} {}", used.as_micros() as u64 * 1000 / granted);
            self.runtime.remove(name).await;
        }
        Ok(())
    }

    async fn used(&self, name: &str) -> Outcome<Duration> {
        let usage = self.runtime.usage(|view| view.spec.name == name).await;
        Ok(usage.first().ok_or("it does not run")?.1.cpu())
    }
}
