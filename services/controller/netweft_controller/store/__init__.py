"""Where intent is kept: Redis, and its twin in memory."""
