//! What a choice reaches, and who reads it, kept up to date as the choice changes.

use super::members::{Choice, Members};
use egg::Id;

pub(super) struct Live<'a> {
    members: &'a Members<'a>,
    pub choice: Choice,
    /// Classes whose chosen terms read each class, once for each operand; empty where a class is not reached.
    users: Vec<Vec<Id>>,
}

impl<'a> Live<'a> {
    pub fn new(members: &'a Members<'a>, choice: Choice) -> Live<'a> {
        let mut live = Live { members, choice, users: vec![Vec::new(); members.ids()] };
        live.users[usize::from(members.root)].push(members.root);
        live.read(members.root);
        live
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
    }

    /// The tensors that a class's chosen term reads. A carried copy reads the update that writes it.
    fn operands(&self, class: Id) -> Vec<Id> {
        let m = self.members;
        let term = m.chosen(&self.choice, class);
        if term.name() == "carried" {
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
                if users.is_empty() {
                    stack.push(operand);
                }
            }
        }
    }
}
