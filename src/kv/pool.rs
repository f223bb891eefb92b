//! The pool of KV blocks: who owns how many, and which are free.

/// A block's index in the cache.
pub type BlockIndex = u32;

/// Reference-counted fixed-size blocks. A count above one means that sequences share the block.
#[derive(Debug)]
pub struct BlockPool {
    /// Owners of each block; 0 means free.
    ref_counts: Vec<u32>,
    /// Free blocks, taken from the end, so that a block that was just released is used next.
    free: Vec<BlockIndex>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: u32) -> Self {
        Self { ref_counts: vec![0; num_blocks as usize], free: (0..num_blocks).rev().collect() }
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody owns.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free block with one owner, or `None` where there is none.
    pub fn allocate(&mut self) -> Option<BlockIndex> {
        let block = self.free.pop()?;
        debug_assert_eq!(self.ref_counts[block as usize], 0);
        self.ref_counts[block as usize] = 1;
        Some(block)
    }

    /// Adds an owner to a block in use.
    pub fn share(&mut self, block: BlockIndex) {
        let count = &mut self.ref_counts[block as usize];
        assert!(*count > 0, "block {block} is free and cannot be shared");
        *count += 1;
    }

    /// Removes an owner; the last one frees the block.
    pub fn release(&mut self, block: BlockIndex) {
        let count = &mut self.ref_counts[block as usize];
        assert!(*count > 0, "block {block} was released more often than it was taken");
        *count -= 1;
        if *count == 0 {
            self.free.push(block);
        }
    }

    /// Proves that the counts equal the ownership that `owners` lists, a block once per owner, and that every
    /// other block is free exactly once. Returns what is wrong otherwise.
    pub fn check_integrity(&self, owners: impl IntoIterator<Item = BlockIndex>) -> Result<(), String> {
        let mut expected = vec![0u32; self.ref_counts.len()];
        for block in owners {
            let count = expected.get_mut(block as usize).ok_or(format!("block {block} does not exist"))?;
            *count += 1;
        }
        for (block, (&expected, &counted)) in expected.iter().zip(&self.ref_counts).enumerate() {
            if expected != counted {
                return Err(format!("block {block} has {expected} owners but counts {counted}"));
            }
        }
        let mut listed = vec![false; self.ref_counts.len()];
        for &block in &self.free {
            if self.ref_counts[block as usize] != 0 {
                return Err(format!("block {block} is both free and owned"));
            }
            if std::mem::replace(&mut listed[block as usize], true) {
                return Err(format!("block {block} is free twice"));
            }
        }
        let num_owned = self.ref_counts.iter().filter(|&&count| count > 0).count();
        if num_owned + self.free.len() != self.num_blocks() {
            return Err(format!(
                "{num_owned} owned and {} free blocks are not {} in all",
                self.free.len(),
                self.num_blocks()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_run_out_and_come_back() {
        let mut pool = BlockPool::new(2);
        let first = pool.allocate().unwrap();
        let second = pool.allocate().unwrap();
        assert_ne!(first, second);
        assert_eq!(pool.allocate(), None);
        pool.release(first);
        assert_eq!(pool.allocate(), Some(first));
        pool.check_integrity([first, second]).unwrap();
    }

    #[test]
    fn a_shared_block_stays_until_its_last_owner_leaves() {
        let mut pool = BlockPool::new(1);
        let block = pool.allocate().unwrap();
        pool.share(block);
        pool.check_integrity([block, block]).unwrap();
        pool.release(block);
        assert_eq!(pool.num_free(), 0);
        pool.release(block);
        assert_eq!(pool.num_free(), 1);
    }

    #[test]
    fn integrity_notices_a_leak_and_a_phantom_owner() {
        let mut pool = BlockPool::new(3);
        let block = pool.allocate().unwrap();
        assert!(pool.check_integrity([]).unwrap_err().contains("0 owners but counts 1"));
        assert!(pool.check_integrity([block, block]).unwrap_err().contains("2 owners but counts 1"));
        assert!(pool.check_integrity([block, 7]).unwrap_err().contains("does not exist"));
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn a_double_release_is_a_defect() {
        let mut pool = BlockPool::new(1);
        let block = pool.allocate().unwrap();
        pool.release(block);
        pool.release(block);
    }

    proptest! {
        /// Random takes, shares and releases against a plain list of owners.
        #[test]
        fn random_operations_keep_the_books(operations in prop::collection::vec((0u8..3, any::<usize>()), 1..400)) {
            let mut pool = BlockPool::new(5);
            let mut owners: Vec<BlockIndex> = Vec::new();
            for (operation, pick) in operations {
                match operation {
                    0 => owners.extend(pool.allocate()),
                    1 if !owners.is_empty() => {
                        let block = owners[pick % owners.len()];
                        pool.share(block);
                        owners.push(block);
                    }
                    2 if !owners.is_empty() => {
                        let block = owners.swap_remove(pick % owners.len());
                        pool.release(block);
                    }
                    _ => {}
                }
                prop_assert_eq!(pool.check_integrity(owners.iter().copied()), Ok(()));
            }
        }
    }
}
