"""Who a corpus speaks of, what its filters remove by group, and texts with groups exchanged."""
