//! Which tag implies which, through any number of steps, and in circles too.

use std::collections::HashMap;

/// The number of a rule, in the order in which rules were read.
pub(super) type RuleId = u32;

/// Implications between names. Names that imply each other in a circle are one group: to the others they are one tag.
#[derive(Debug, Default)]
pub(super) struct Graph {
    places: HashMap<String, u32>,
    names: Vec<String>,
    /// By place: the group.
    group_of: Vec<u32>,
    groups: Vec<Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// The places of its names.
    members: Vec<u32>,
    /// The groups that it implies in one step, and by which rule.
    implied: Vec<(u32, RuleId)>,
    /// The rules within it, where it is a circle.
    inner: Vec<RuleId>,
}

/// How far the implications of one picture's tags go; made once and used for many pictures.
#[derive(Debug, Default)]
pub(super) struct Reach {
    round: u32,
    groups: Vec<Visit>,
    queue: Vec<u32>,
    reached: Vec<u32>,
}

/// What is known about a group in the round of that number.
#[derive(Debug, Clone, Copy, Default)]
struct Visit {
    expanded: u32,
    reached: u32,
    /// The group and the rule it was reached from.
    from: (u32, RuleId),
    /// Which of the tags it was reached from.
    source: u32,
    held: u32,
}

impl Graph {
    /// Implications given as (specific, general, rule); names are canonical.
    pub(super) fn new<'a>(edges: impl IntoIterator<Item = (&'a str, &'a str, RuleId)>) -> Self {
        let mut graph = Self::default();
        let edges: Vec<_> =
            edges.into_iter().map(|(from, to, rule)| (graph.place(from), graph.place(to), rule)).collect();
        let mut next = vec![Vec::new(); graph.names.len()];
        edges.iter().for_each(|(from, to, _)| next[*from as usize].push(*to));
        graph.group(&next);
        for (from, to, rule) in edges {
            let [from, to] = [from, to].map(|place| graph.group_of[place as usize]);
            let group = &mut graph.groups[from as usize];
            if from == to { group.inner.push(rule) } else { group.implied.push((to, rule)) }
        }
        graph
    }

    fn place(&mut self, name: &str) -> u32 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = self.names.len() as u32;
        self.places.insert(name.to_owned(), place);
        self.names.push(name.to_owned());
        place
    }

    /// Finds the groups: the strongly connected components (Tarjan 1972), without recursion, since chains are long.
    fn group(&mut self, next: &[Vec<u32>]) {
        const NEW: u32 = u32::MAX;
        let (mut order, mut low) = (vec![NEW; next.len()], vec![0; next.len()]);
        self.group_of = vec![NEW; next.len()];
        let (mut count, mut open, mut path) = (0, Vec::new(), Vec::new());
        for start in 0..next.len() {
            if order[start] == NEW {
                path.push((start, 0));
            }
            while let Some((place, edge)) = path.pop() {
                if edge == 0 {
                    (order[place], low[place]) = (count, count);
                    count += 1;
                    open.push(place);
                }
                if let Some(to) = next[place].get(edge).map(|to| *to as usize) {
                    path.push((place, edge + 1));
                    if order[to] == NEW {
                        path.push((to, 0));
                    } else if self.group_of[to] == NEW {
                        low[place] = low[place].min(order[to]);
                    }
                    continue;
                }
                if low[place] == order[place] {
                    self.close(&mut open, place);
                }
                if let Some((above, _)) = path.last() {
                    low[*above] = low[*above].min(low[place]);
                }
            }
        }
    }

    /// Makes a group of all open places from `root` on.
    fn close(&mut self, open: &mut Vec<usize>, root: usize) {
        let group = self.groups.len() as u32;
        let from = open.iter().rposition(|place| *place == root).unwrap_or_default();
        let members: Vec<_> = open.drain(from..).map(|place| place as u32).collect();
        members.iter().for_each(|place| self.group_of[*place as usize] = group);
        self.groups.push(Group { members, ..Group::default() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The circles, each by its names.
    pub(super) fn circles(&self) -> impl Iterator<Item = Vec<&str>> {
        let circles = self.groups.iter().filter(|group| group.members.len() > 1);
        circles.map(|group| self.members(group))
    }

    fn members(&self, group: &Group) -> Vec<&str> {
        group.members.iter().map(|place| self.names[*place as usize].as_str()).collect()
    }

    /// Follows all implications of a picture's tags, of which those that come first count as sources first.
    pub(super) fn walk<'a>(&self, names: impl IntoIterator<Item = &'a str>, reach: &mut Reach) {
        reach.start(self.groups.len());
        let sources: Vec<_> = names
            .into_iter()
            .zip(0_u32..)
            .filter_map(|(name, source)| Some((self.group_of[*self.places.get(name)? as usize], source)))
            .collect();
        sources.iter().for_each(|(group, _)| reach.groups[*group as usize].held = reach.round);
        for (group, source) in sources {
            if !reach.expand(group) {
                continue;
            }
            reach.queue.push(group);
            while let Some(group) = reach.queue.pop() {
                for (to, rule) in &self.groups[group as usize].implied {
                    reach.reach(*to, (group, *rule), source);
                }
            }
        }
    }

    /// Whether a name is implied by a tag of the walk that it does not itself imply.
    pub(super) fn is_implied(&self, name: &str, reach: &Reach) -> bool {
        self.places
            .get(name)
            .is_some_and(|place| reach.groups[self.group_of[*place as usize] as usize].reached == reach.round)
    }

    /// The rules that lead to an implied name from the nearest tag that is there.
    pub(super) fn rules_to(&self, name: &str, reach: &Reach) -> Vec<RuleId> {
        let mut rules = Vec::new();
        let Some(place) = self.places.get(name) else { return rules };
        let mut group = self.group_of[*place as usize];
        while reach.groups[group as usize].reached == reach.round {
            let (from, rule) = reach.groups[group as usize].from;
            rules.push(rule);
            group = from;
            if reach.groups[group as usize].held == reach.round {
                break;
            }
        }
        rules
    }

    /// The names that the walk came to, each with the tag it came from.
    pub(super) fn implied<'a, 'b>(
        &'a self,
        reach: &'b Reach,
    ) -> impl Iterator<Item = (&'a str, usize)> + use<'a, 'b> {
        reach.reached.iter().flat_map(|group| {
            let source = reach.groups[*group as usize].source as usize;
            self.members(&self.groups[*group as usize]).into_iter().map(move |name| (name, source))
        })
    }

    /// The other names of a name's circle, and the circle's rules; none where it is in no circle.
    pub(super) fn circle_of(&self, name: &str) -> Option<(Vec<&str>, &[RuleId])> {
        let place = self.places.get(name)?;
        let group = &self.groups[self.group_of[*place as usize] as usize];
        (group.members.len() > 1).then(|| (self.members(group), group.inner.as_slice()))
    }
}

impl Reach {
    fn start(&mut self, groups: usize) {
        self.groups.resize(groups, Visit::default());
        self.round += 1;
        self.reached.clear();
    }

    /// Whether this is the first time in this round.
    fn expand(&mut self, group: u32) -> bool {
        let visit = &mut self.groups[group as usize];
        let first = visit.expanded != self.round;
        visit.expanded = self.round;
        first
    }

    fn reach(&mut self, group: u32, from: (u32, RuleId), source: u32) {
        let visit = &mut self.groups[group as usize];
        if visit.reached == self.round {
            return;
        }
        (visit.reached, visit.from, visit.source) = (self.round, from, source);
        self.reached.push(group);
        if self.expand(group) {
            self.queue.push(group);
        }
    }
}
