"""Results on paper: tables, pictures, and what a run's folder holds."""
