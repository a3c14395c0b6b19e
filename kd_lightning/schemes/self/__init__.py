"""Self-distillation: schemes in which a network is its own teacher."""
