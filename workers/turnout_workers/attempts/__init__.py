"""What a worker does with a job: an attempt, from its claim to where it goes next."""
