from workers.llvm.target import same_target as same_target
