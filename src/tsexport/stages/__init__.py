"""The stages of a build, and what they share.  `tsexport.pipeline` says in which order they come."""
