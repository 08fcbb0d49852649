"""How container runtimes reach the agent."""
