"""Looking into a run's exchange log: reading whole exchanges, proving, analysing, drawing. A run is never changed."""
