{{/* The pod that serves, for the Deployment and for the InferenceService; "container" is the container's name. */}}
{{- define "tiny-sd.tritonPod" -}}
{{- $triton := .root.Values.triton }}
{{- $checkpoint := .root.Values.checkpoint }}
{{- $leave := include "tiny-sd.tritonLeaveSeconds" .root | int }}
{{- $drain := include "tiny-sd.drainSeconds" .root | int -}}
serviceAccountName: {{ include "tiny-sd.fullname" .root }}-triton
{{ include "tiny-sd.podSecurity" .root }}
# preStop (leave, then drain), Triton's own exit timeout, and some seconds for the rest.
terminationGracePeriodSeconds: {{ add $leave $drain 30 15 }}
{{- with $triton.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with include "tiny-sd.placement" $triton }}
{{ trim . }}
{{- end }}
{{ include "tiny-sd.spread" (dict "root" .root "component" "triton") }}
{{- if ne $checkpoint.storage "existing" }}
initContainers:
  {{- if include "tiny-sd.podFetches" .root }}
  - {{ include "tiny-sd.fetchContainer" .root | nindent 4 | trim }}
  {{- else }}
  - name: wait-for-checkpoint
    image: {{ include "tiny-sd.image" (dict "root" .root "image" $triton.image) }}
    imagePullPolicy: {{ $triton.image.pullPolicy }}
    command: [sh, -euc]
    args:
      - until [ -e "{{ include "tiny-sd.checkpointPath" .root }}" ]; do echo "waiting for the Job that fetches it"; sleep 5; done
    env:
      - { name: NVIDIA_VISIBLE_DEVICES, value: void }
    resources:
      requests: { cpu: 10m, memory: 16Mi }
      limits: { memory: 64Mi }
    {{- include "tiny-sd.containerSecurity" .root | nindent 4 }}
    volumeMounts:
      - { name: checkpoints, mountPath: /checkpoints, readOnly: true }
  {{- end }}
{{- end }}
containers:
  - name: {{ .container }}
    image: {{ include "tiny-sd.image" (dict "root" .root "image" $triton.image) }}
    imagePullPolicy: {{ $triton.image.pullPolicy }}
    args:
      - sh
      - -euc
      # The volume outlives a server that was killed, and so would what that had there. The connections' age makes callers look
      # up again who is there: new pods get their share, ending ones are left; what is in flight stays on the old connection.
      - rm -rf /dev/shm/*; exec /opt/tiny-sd/deploy/docker/start-triton.sh --grpc-max-connection-age=10000
    ports:
      - { name: http, containerPort: 8000, protocol: TCP }
      - { name: grpc, containerPort: 8001, protocol: TCP }
      - { name: metrics, containerPort: 8002, protocol: TCP }
    env:
      {{- $usual := dict
          "HOME" "/tmp"
          "TINY_SD_CHECKPOINT" (include "tiny-sd.checkpointPath" .root)
          "TINY_SD_MAX_IN_FLIGHT" ($triton.maxInFlight | toString)
          "TINY_SD_SIZES" (join "," .root.Values.sizes) }}
      {{- if not $triton.gpu.count }}
      {{- $usual = set $usual "NVIDIA_VISIBLE_DEVICES" "void" }}
      {{- end }}
      {{- with .root.Values.tracing.endpoint }}
      {{- $usual = set $usual "OTEL_EXPORTER_OTLP_ENDPOINT" . }}
      {{- end }}
      {{- mergeOverwrite $usual $triton.env | include "tiny-sd.env" | trim | nindent 6 }}
      {{- with $triton.adminKeySecret }}
      - name: TINY_SD_ADMIN_KEY
        valueFrom:
          secretKeyRef: { name: {{ . }}, key: TINY_SD_ADMIN_KEY }
      {{- end }}
    resources:
      {{- $gpus := dict }}
      {{- if $triton.gpu.count }}
      {{- $gpus = dict $triton.gpu.resource $triton.gpu.count }}
      {{- end }}
      requests:
        {{- toYaml $triton.resources.requests | nindent 8 }}
      limits:
        {{- merge $gpus $triton.resources.limits | toYaml | nindent 8 }}
    {{- include "tiny-sd.containerSecurity" .root | nindent 4 }}
    startupProbe:
      httpGet: { path: /v2/models/tiny_sd/ready, port: http }
      periodSeconds: 5
      failureThreshold: {{ div (add $triton.startupSeconds 4) 5 }}
    readinessProbe:
      httpGet: { path: /v2/models/tiny_sd/ready, port: http }
      periodSeconds: 5
      timeoutSeconds: 3
      failureThreshold: 3
    # Triton goes on calling itself ready when the process of one of its models is dead; a picture tells. There is nothing to
    # drain then: such a pod is not given the time that others get.
    livenessProbe:
      exec:
        {{- /* On a GPU there is time to finish it, which tries the VAE decoder as well. */}}
        command: [tiny-sd, check, --url, "grpc://localhost:8001", --timeout, {{ $triton.livenessSeconds | quote }}{{ if $triton.gpu.count }}, --whole{{ end }}]
      periodSeconds: 60
      timeoutSeconds: {{ add $triton.livenessSeconds 5 }}
      failureThreshold: 2
      terminationGracePeriodSeconds: 30
    lifecycle:
      preStop:
        exec:
          # Triton itself does not let the requests of an ensemble finish.
          command: [sh, -c, "sleep {{ $leave }}; exec tiny-sd drain --url grpc://localhost:8001 --timeout {{ $drain }}"]
    volumeMounts:
      - { name: checkpoints, mountPath: /checkpoints, readOnly: true }
      - { name: shm, mountPath: /dev/shm }
      - { name: tmp, mountPath: /tmp }
volumes:
  - name: checkpoints
    {{- if eq $checkpoint.storage "pod" }}
    emptyDir: {}
    {{- else }}
    persistentVolumeClaim:
      claimName: {{ include "tiny-sd.checkpointClaim" .root }}
    {{- end }}
  - name: shm
    emptyDir: { medium: Memory, sizeLimit: {{ $triton.sharedMemory }} }
  - name: tmp
    emptyDir: {}
{{- end }}
