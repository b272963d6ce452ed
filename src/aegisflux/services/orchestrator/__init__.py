"""The orchestrator: services, snapshots, rollouts, enrolment. It holds the signing keys."""
