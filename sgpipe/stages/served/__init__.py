"""Models that a server answers for, by the OpenAI chat API."""
