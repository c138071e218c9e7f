//! What a choice reaches, and who reads it, kept up to date as the choice changes.

use super::members::{Choice, Members};
use super::noise::added;
use crate::rewrite::forms;
use egg::Id;

/// Members taken at once: classes, and what is taken in each.
pub(in crate::plan) type Flip = Vec<(Id, usize)>;

pub(in crate::plan) struct Live<'a> {
    members: &'a Members<'a>,
    pub choice: Choice,
    /// Classes whose chosen terms read each class, once for each operand; empty where a class is not reached.
    users: Vec<Vec<Id>>,
    /// What each buffer adds to the noise; empty where noise does not count.
    parts: Vec<f64>,
    noise: f64,
    /// Buffers whose readers or terms changed.
    changed: Vec<Id>,
}

impl<'a> Live<'a> {
    pub fn new(members: &'a Members<'a>, choice: Choice) -> Live<'a> {
        let parts = if members.noise.is_some() { vec![0.0; members.ids()] } else { Vec::new() };
        let users = vec![Vec::new(); members.ids()];
        let mut live = Live { members, choice, users, parts, noise: 0.0, changed: Vec::new() };
        live.users[usize::from(members.root)].push(members.root);
        live.read(members.root);
        live.count_noise();
        live
    }

    /// What the choice adds to the gradients' noise, as a share of the budget.
    pub fn noise(&self) -> f64 {
        self.noise
    }

    /// What one buffer adds.
    pub fn noise_of(&self, buffer: Id) -> f64 {
        self.parts.get(usize::from(buffer)).copied().unwrap_or(0.0)
    }

    fn count_noise(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        for c in changed {
            let part = added(self.members, &self.choice, self.users(c), c);
            self.noise += part - std::mem::replace(&mut self.parts[usize::from(c)], part);
        }
    }

    pub fn users(&self, class: Id) -> &[Id] {
        &self.users[usize::from(class)]
    }

    pub fn is_live(&self, class: Id) -> bool {
        !self.users(class).is_empty()
    }

    /// Takes another member of a class.
    pub fn set(&mut self, class: Id, member: usize) {
        let live = self.is_live(class);
        if live {
            self.forget(class);
        }
        self.choice.set(class, member);
        if live {
            self.read(class);
        }
        if !self.parts.is_empty() {
            self.changed.push(class);
            self.count_noise();
        }
    }

    /// Takes other members; what it returns takes them back.
    pub fn take(&mut self, flip: &Flip) -> Flip {
        let before: Flip = flip.iter().rev().map(|&(c, _)| (c, self.choice.of(c))).collect();
        flip.iter().for_each(|&(c, member)| self.set(c, member));
        before
    }

    /// The noise with other members taken.
    pub fn noise_with(&mut self, flip: &Flip) -> f64 {
        let back = self.take(flip);
        let noise = self.noise;
        self.take(&back);
        noise
    }

    /// The tensors that a class's chosen term reads. A carried copy reads the update that writes it.
    fn operands(&self, class: Id) -> Vec<Id> {
        let m = self.members;
        let term = m.chosen(&self.choice, class);
        if term.name() == forms::CARRIED {
            return m.copy_of(term).map(|(name, _)| m.update_of(name)).into_iter().collect();
        }
        m.operands(&self.choice, class).collect()
    }

    fn read(&mut self, class: Id) {
        let mut stack = vec![class];
        while let Some(class) = stack.pop() {
            for operand in self.operands(class) {
                let users = &mut self.users[usize::from(operand)];
                users.push(class);
                if !self.parts.is_empty() {
                    self.changed.push(operand);
                }
                if users.len() == 1 {
                    stack.push(operand);
                }
            }
        }
    }

    fn forget(&mut self, class: Id) {
        let mut stack = vec![class];
        while let Some(class) = stack.pop() {
            for operand in self.operands(class) {
                let users = &mut self.users[usize::from(operand)];
                let at = users.iter().position(|&u| u == class).expect("a reader is a user");
                users.swap_remove(at);
                if !self.parts.is_empty() {
                    self.changed.push(operand);
                }
                if users.is_empty() {
                    stack.push(operand);
                }
            }
        }
    }
}
