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
                volume.frozen.as_deref().map(reason)
            ));
            // S3: whether anything is known of what a copy missed; otherwise it is copied whole.
            let maps: Vec<bool> = volume.legs().map(|(_, leg)| leg.stale_since.is_some()).collect();
            lines.push(format!("maps {} {maps:?}", volume.name));
        }
        for task in table.tasks.values() {
            let outcome = format!("{:?}", task.outcome);
            let outcome = outcome.split([' ', '(']).take(2).collect::<String>();
            lines.push(format!("task {} {:?} {outcome} {}", task.command.word(), task.state, task.reason));
        }
        lines.push(format!("wipes {}", table.wipes.len()));
        for row in table.areas.values() {
            let quarantined = &row.quarantined;
            let (server, strangers) = (table.server_name(row.server), row.strangers.len());
            lines.push(format!(
                "area {} of {server} {:?} quarantined {quarantined:?} strangers {strangers}",
                row.name, row.offline
            ));
        }
        lines.extend(table.members().map(|row| format!("member {}", row.name)));
        lines.push(format!("rebuild {}", table.pool.as_ref().is_some_and(|row| row.rebuild.is_some())));
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
                let (quarantined, stones) = (&area.quarantined, area.tombstones.len());
                lines.push(format!("label {} {} quarantined {quarantined:?} tombstones {stones}", server.name, area.name));
            }
        }
        lines.sort();
        lines
    }
}

/// Why a volume is frozen. Which of several labels was the first to say so depends on which lender came first.
fn reason(text: &str) -> &str {
    let is_of_a_label = text.starts_with("the label of area");
    text.split_once("; ").filter(|_| is_of_a_label).map_or(text, |(_, rest)| rest)
}
