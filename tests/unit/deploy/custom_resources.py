"""What of the custom resources' schemas matters here: kubernetes-validate knows Kubernetes' own kinds alone.

Each schema is as strict as the operator's own for the fields that are used, and refuses all others.
"""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_DURATION: Schema = {"type": "string", "pattern": r"^(\d+(ms|s|m|h|d))+$"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def _map_of(value: Schema) -> Schema:
    return {"type": "object", "additionalProperties": value}


def _resource(spec: Schema) -> Schema:
    metadata = {"type": "object", "required": ["name"]}
    return _object(
        ("apiVersion", "kind", "metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=metadata, spec=spec
    )


_RULE = {
    "oneOf": [
        _object(
            ("alert", "expr"),
            alert=_TEXT,
            expr=_TEXT,
            labels=_map_of(_TEXT),
            annotations=_map_of(_TEXT),
            **{"for": _DURATION},
        ),
        _object(("record", "expr"), record=_TEXT, expr=_TEXT, labels=_map_of(_TEXT)),
    ]
}
_MATCH = _object(path=_object(("type", "value"), type={"enum": ["Exact", "PathPrefix"]}, value=_TEXT))
_BEHAVIOUR = _map_of(
    _object(
        stabilizationWindowSeconds=_COUNT,
        policies=_list_of(
            _object(
                ("type", "value", "periodSeconds"),
                type={"enum": ["Pods", "Percent"]},
                value=_COUNT,
                periodSeconds=_COUNT,
            )
        ),
    )
)

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("monitoring.coreos.com/v1", "PrometheusRule"): _resource(
        _object(
            ("groups",),
            groups=_list_of(_object(("name", "rules"), name=_TEXT, interval=_DURATION, rules=_list_of(_RULE))),
        )
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _resource(
        _object(
            ("selector", "endpoints"),
            jobLabel=_TEXT,
            selector=_object(matchLabels=_map_of(_TEXT)),
            endpoints=_list_of(
                _object(
                    port=_TEXT,
                    path=_TEXT,
                    interval=_DURATION,
                    relabelings=_list_of(_object(sourceLabels=_list_of(_TEXT), targetLabel=_TEXT)),
                )
            ),
        )
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): _resource(
        _object(
            ("scaleTargetRef", "triggers"),
            scaleTargetRef=_object(("name",), apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            pollingInterval=_COUNT,
            fallback=_object(("failureThreshold", "replicas"), failureThreshold=_COUNT, replicas=_COUNT),
            advanced=_object(horizontalPodAutoscalerConfig=_object(behavior=_BEHAVIOUR)),
            triggers=_list_of(
                _object(
                    ("type", "metadata"),
                    type={"const": "prometheus"},
                    metadata=_object(
                        ("serverAddress", "query", "threshold"), serverAddress=_TEXT, query=_TEXT, threshold=_TEXT
                    ),
                )
            ),
        )
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _resource(
        _object(
            ("parentRefs", "rules"),
            parentRefs=_list_of(_object(("name",), name=_TEXT, namespace=_TEXT, sectionName=_TEXT)),
            hostnames=_list_of(_TEXT),
            rules=_list_of(
                _object(
                    matches=_list_of(_MATCH),
                    timeouts=_object(request=_DURATION, backendRequest=_DURATION),
                    backendRefs=_list_of(_object(("name", "port"), name=_TEXT, port=_COUNT)),
                )
            ),
        )
    ),
    ("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy"): _resource(
        _object(
            targetRefs=_list_of(_object(("group", "kind", "name"), group=_TEXT, kind=_TEXT, name=_TEXT)),
            loadBalancer=_object(
                ("type",),
                type={"enum": ["ConsistentHash", "LeastRequest", "Random", "RoundRobin"]},
                consistentHash=_object(
                    ("type",), type={"enum": ["SourceIP", "Header", "Cookie"]}, header=_object(("name",), name=_TEXT)
                ),
            ),
        )
    ),
    ("kafka.strimzi.io/v1beta2", "KafkaTopic"): _resource(
        _object(
            partitions=_COUNT,
            replicas=_COUNT,
            topicName=_TEXT,
            config=_map_of({"type": ["string", "integer", "boolean"]}),
        )
    ),
    ("kafka.strimzi.io/v1beta2", "KafkaUser"): _resource(
        _object(
            authentication=_object(("type",), type={"enum": ["tls", "scram-sha-512", "tls-external"]}),
            authorization=_object(
                ("type", "acls"),
                type={"const": "simple"},
                acls=_list_of(
                    _object(
                        ("resource",),
                        resource=_object(
                            ("type",),
                            type={"enum": ["topic", "group", "cluster", "transactionalId"]},
                            name=_TEXT,
                            patternType={"enum": ["literal", "prefix"]},
                        ),
                        operations=_list_of(_TEXT),
                        host=_TEXT,
                    )
                ),
            ),
        )
    ),
}
