-- How healthy a resource of Quorumail is, for Argo CD: docs/how-to/gitops.md says where it goes.
-- Waiting for something that comes by itself, or that another file of the same commit may bring, is Progressing; what
-- people have to mend is Degraded.
local waits = {
  Pending = true, RollingOut = true, NodesNotReady = true, NoQuorum = true, MailnodesNotReachable = true,
  PartitionsLeaderless = true, ReplicasMoving = true, DomainNotFound = true, ClusterNotFound = true,
  ClusterNotReady = true, SecretNotFound = true, PolicyNotFound = true, VolumeNotReady = true, NotYet = true,
  Waiting = true, Running = true, Deleting = true,
}
local metadata, status = obj.metadata or {}, obj.status or {}

if (metadata.annotations or {})["quorumail.io/paused"] == "true" then
  return { status = "Suspended", message = "paused by the annotation quorumail.io/paused" }
end
if status.phase == "Succeeded" then
  return { status = "Healthy", message = status.phase }
end
if status.phase == "Failed" then
  return { status = "Degraded", message = status.error or status.phase }
end
if status.observedGeneration == nil or status.observedGeneration < (metadata.generation or 0) then
  return { status = "Progressing", message = "the operator has not seen it yet" }
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    if condition.status == "True" then
      return { status = "Healthy", message = condition.message }
    end
    if condition.status == "Unknown" or waits[condition.reason] then
      return { status = "Progressing", message = condition.message }
    end
    return { status = "Degraded", message = condition.message }
  end
end
return { status = "Progressing", message = "there is no condition yet" }
