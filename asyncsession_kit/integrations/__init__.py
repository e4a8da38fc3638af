"""What a framework needs so that a request's work is committed before it is answered.

One module for each framework, imported by name; each asks for the framework only then.
"""
