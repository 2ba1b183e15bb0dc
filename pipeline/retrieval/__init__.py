"""From a query to a ranking: plan, scan, score."""
