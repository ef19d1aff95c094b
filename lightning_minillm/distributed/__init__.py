"""Models on several devices: sharding, splitting, and what ranks share."""
