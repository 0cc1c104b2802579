//! The form of a script: blocks of commands with their output.
//!
//! ```text
//! # A comment, before any block or within its commands.
//! cluster nodes=3
//! campaign 1
//! ---
//! 1 is candidate in term 1
//!
//! stabilize
//! ---
//! ...
//! ```
//! A blank line ends a block. Output holds no blank line.

/// Some commands and what comes of them.
#[derive(Default)]
pub struct Block {
    /// Commands and comments, as written.
    pub commands: Vec<String>,
    /// What running them gives, a line each.
    pub output: Vec<String>,
}

/// A whole file.
pub struct Script {
    pub blocks: Vec<Block>,
}

impl Script {
    pub fn parse(text: &str) -> Script {
        let mut blocks = Vec::new();
        let mut block = Block::default();
        let mut in_output = false;
        for line in text.lines().chain([""]) {
            if line.is_empty() {
                if !block.commands.is_empty() {
                    blocks.push(std::mem::take(&mut block));
                }
                in_output = false;
            } else if line == "---" {
                in_output = true;
            } else if in_output {
                block.output.push(line.to_string());
            } else {
                block.commands.push(line.to_string());
            }
        }
        Script { blocks }
    }

    pub fn to_text(&self) -> String {
        let blocks = self.blocks.iter().map(|block| {
            let lines = block.commands.iter().map(String::as_str);
            let lines = lines
                .chain(["---"])
                .chain(block.output.iter().map(String::as_str));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        });
        blocks.collect::<Vec<_>>().join("\n")
    }
}
