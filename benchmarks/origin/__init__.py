"""The notebook that this project began with, reproduced and explained."""
