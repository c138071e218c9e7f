//! Enums whose variants have names in text and in rules.

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$inner])* $variant),* }
        impl $name {
            /// All members, in the order they are declared.
            pub const ALL: [$name; [$($text),*].len()] = [$($name::$variant),*];
            /// The names, in the order of the members.
            pub const NAMES: [&'static str; [$($text),*].len()] = [$($text),*];
            /// The name in text and in rules.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}
pub(super) use named_enum;
