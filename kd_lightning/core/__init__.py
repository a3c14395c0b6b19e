"""The parts that everything else is built on."""
