"""Which heads to prune: ranked, greedy or learned, and judged on a panel of what must not break."""
