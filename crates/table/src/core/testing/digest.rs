//! What two runs can be compared by.

use super::Pool;

impl Pool {
    /// The end state as far as it does not depend on random numbers and times.
    pub fn digest(&mut self) -> Vec<String> {
        let table = self.core.table();
        let mut lines: Vec<String> = Vec::new();
        for volume in table.volumes.values() {
            let legs: Vec<_> = volume
                .legs()
                .map(|(index, leg)| (index, table.areas[&leg.area].name.clone(), leg.offset, leg.length, leg.in_sync))
                .collect();
            let holder = volume.borrower.map(|id| table.server_name(id));
            lines.push(format!(
                "volume {} {} {} {:?} status {} task {} frozen {:?} {legs:?}",
                volume.name,
                volume.way,
                volume.size,
                holder,
                volume.status(),
                volume.task.is_some(),
                volume.frozen
            ));
        }
        for task in table.tasks.values() {
            let outcome = format!("{:?}", task.outcome);
            let outcome = outcome.split([' ', '(']).take(2).collect::<String>();
            lines.push(format!("task {} {:?} {outcome} {}", task.command.word(), task.state, task.reason));
        }
        lines.push(format!("wipes {}", table.wipes.len()));
        for server in &self.servers {
            for area in server.areas.values() {
                let slices: Vec<_> = area
                    .slices
                    .values()
                    .map(|s| {
                        (
                            s.facts.offset,
                            s.facts.length,
                            s.admitted,
                            s.borrower.filter(|_| s.admitted),
                            s.facts.volume_name.clone(),
                        )
                    })
                    .collect();
                lines.push(format!("label {} {} {slices:?} dirty {:?}", server.name, area.name, area.dirty));
            }
        }
        lines.sort();
        lines
    }
}
