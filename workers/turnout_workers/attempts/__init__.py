"""What a worker does with a job: one attempt, from the claim to where the job goes next."""
